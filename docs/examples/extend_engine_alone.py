"""An engine of your own: one process, nothing sharded, every method of the contract.

[engine]
name = "extend_engine_alone:OneProcess"
"""

from contextlib import contextmanager

import torch

from adrpo_scale import ConfigError, Engine, EngineConfig, FlatRange, StepResult
from adrpo_scale.core import dist
from adrpo_scale.engines import loading


class OneProcessConfig(EngineConfig):
    """The settings of every engine, and no other."""


class OneProcess(Engine):
    Config = OneProcessConfig

    def __init__(self, config, optimizer, seed):
        if dist.world_size() > 1 or config.dtype != "float32":
            raise ConfigError(f"engine.name = {config.name!r}: one process in float32 is expected")
        self.optimizer_config, self.seed = optimizer, seed
        self.device, self.dtype = loading.prepare_device(config), torch.float32

    # ---- models ----------------------------------------------------------------------------

    def build_policy(self, spec):
        model = self._build(spec, trained=True)
        self.trained = loading.trained_parameters(model)
        self.adamw = loading.build_adamw(self.trained.values(), self.optimizer_config)
        loading.begin_moments(self.adamw, self.trained.values())
        return model

    def build_frozen(self, spec):
        return self._build(spec, trained=False)

    @torch.no_grad()
    def _build(self, spec, trained):
        model = loading.build_on_meta(spec, trained=trained)
        model._apply(self._with_memory)
        spec.tie(model)
        for name, tensor in loading.stored_tensors(model).items():
            shape = tuple(tensor.shape)
            tensor.copy_(loading.first_values(name, shape, spec, self.seed, 0, None))
        return model.train(trained)

    def _with_memory(self, tensor):
        make = torch.empty_like if tensor.is_meta else torch.Tensor.to
        return make(tensor, device=self.device)

    # ---- an iteration ----------------------------------------------------------------------

    @contextmanager
    def sampling(self, *models):
        with torch.no_grad():  # whole already: nothing to gather, nothing to free
            yield

    def backward(self, loss, *, last):
        loss.backward()

    def step(self, learning_rate):
        parameters = [p for p in self.trained.values() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.optimizer_config.max_grad_norm)
        if norm.isfinite():
            self.adamw.param_groups[0]["lr"] = learning_rate
            self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return StepResult(float(norm), skipped=not norm.isfinite())

    # ---- a checkpoint ----------------------------------------------------------------------

    def trained_slices(self):
        return {name: parameter.detach() for name, parameter in self.trained.items()}

    def publish(self):
        """Slices are the parameters themselves here."""

    def places(self):
        shapes = {name: tuple(p.shape) for name, p in self.trained.items()}
        return {name: FlatRange(s, 0, torch.Size(s).numel()) for name, s in shapes.items()}

    def moments(self):
        return {moment: self._state(moment) for moment in ("exp_avg", "exp_avg_sq")}

    def optimizer_steps(self):
        return {name: int(step) for name, step in self._state("step").items()}

    def set_optimizer_steps(self, steps):
        for name, step in self._state("step").items():
            step.fill_(steps[name])

    def _state(self, key):
        return {name: self.adamw.state[p][key] for name, p in self.trained.items()}
