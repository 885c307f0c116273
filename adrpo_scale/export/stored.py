"""The base's tensors that an export holds, and their names: on the disk, in the policy, and in the
class that loads the export.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from safetensors import safe_open

from adrpo_scale.core.errors import ExportError
from adrpo_scale.domains.export_target import ExportTarget
from adrpo_scale.hub.foreign import same_bytes
from adrpo_scale.hub.weights import SafetensorsFolder


class StoredTensors(SafetensorsFolder):
    """The base's tensors that a complete export holds, by their stored names: those on the disk,
    the same in the base and in the export.

    policy: names of the policy's tensors. tied: of the policy, those that are stored under the name
    of a weight tied to them: policy name → stored name. is_whole: the export also holds the parts
    of the base beside the model. policy_names: stored name → name in the policy. copied: stored
    names of the tensors that are copied from the base. left_out: tensors of the model that neither
    training nor an export has (second copies of tied weights).
    """

    def __init__(
        self,
        base: Path,
        target: ExportTarget,
        policy: Collection[str],
        tied: Mapping[str, str] | None = None,
        *,
        is_whole: bool,
    ) -> None:
        super().__init__(base / target.component, target.stem)
        self.is_whole, part = is_whole, target.part
        of_model = {n: name for n in self._stored if (name := part.name(n)) is not None}
        of_model |= {stored: name for name, stored in (tied or {}).items()}
        self.policy_names = {n: name for n, name in of_model.items() if name in policy}
        frozen = {n for n, name in of_model.items() if name.startswith(part.frozen)}
        others = self._stored.keys() - of_model.keys() if is_whole else set()
        self.copied = (frozen | others) - self.policy_names.keys()
        self.left_out = of_model.keys() - self.policy_names.keys() - frozen
        self._names_on_disk = {name: stored for stored, name in self.policy_names.items()}
        prefix = f"{part.attribute}." if is_whole else ""
        self._class_names = {n: prefix + name for n, name in of_model.items()}

    def names(self) -> set[str]:
        return self.policy_names.keys() | self.copied

    def stored_name(self, policy: str) -> str:
        """The stored name of a tensor of the policy."""
        return self._names_on_disk[policy]

    def class_name(self, stored: str) -> str:
        """The name of a stored tensor in the class that loads the export."""
        return self._class_names.get(stored, stored)


def check_copied(stored: StoredTensors, files: Iterable[str], folder: Path) -> int:
    """Compares every copied tensor in the export's files with the base's, byte for byte; returns
    their number. Raises ExportError where one differs or is missing."""
    missing = set(stored.copied)
    for path in files:
        for name in sorted(names_in(folder / path) & stored.copied):
            with safe_open(folder / path, "pt") as file:  # again: mapped pages count as memory
                if not same_bytes(file.get_tensor(name), stored.read(name)):
                    raise ExportError(
                        f"{path}: {name} differs from the base model's. Please open an issue"
                    )
            missing.remove(name)
            stored.close()
    if missing:
        raise ExportError(
            f"the export lacks {sorted(missing)[:3]}, which are copied from the base; please "
            "open an issue"
        )
    return len(stored.copied)


def names_in(path: Path) -> set[str]:
    """Names of the tensors in a safetensors file."""
    with safe_open(path, "pt") as file:
        return set(file.keys())
