"""Published sets of prompts, small and in their published layouts, as prompt files."""

from __future__ import annotations

import json

import pytest

from adrpo_scale.core.errors import PromptError
from adrpo_scale.core.tensor_files import file_sha256
from adrpo_scale.data.prepare.published_sets import (
    COMPBENCH,
    SETS,
    PromptSetOptions,
    prepare_prompts,
)
from adrpo_scale.data.prompts import load_prompts

DRAWBENCH = """Prompts,Category
A red colored car.,Colors
"A black apple, and a green backpack.",Colors
"A storefront with 'Hello World' written on it.",Text
"""
PARTI = """Prompt\tCategory\tChallenge\tNote
a cat "wearing" a hat\tAnimals\tBasic\t
the word 'START'\tAbstract\tWriting & Symbols\ta note
"""
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "two clocks",
    },
]
DPG = """item_id,text,keywords,proposition_id,dependency,category_broad,tuple,category_detailed\
,question_natural_language
one7,"A red truck, on sand.",,1,0,entity,entity - whole (truck),whole,Is there a truck?
one7,"A red truck, on sand.",,2,1,attribute,"attribute - color (truck, red)",color,Is it red?
8,Waves at dusk.,,1,0,,,whole,Are there waves?
"""


def prepared(tmp_path, name, source, **options):
    """(rows as training reads them, report.json)."""
    record = prepare_prompts(PromptSetOptions(name, source, tmp_path / "out", **options))
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == record
    return load_prompts(str(tmp_path / "out" / f"{name}.jsonl")), record


def written(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_drawbench(tmp_path, capsys):
    source = written(tmp_path, "drawbench.csv", DRAWBENCH)
    prompts, record = prepared(tmp_path, "drawbench", source)
    assert [(p.text, p.metadata) for p in prompts[1:]] == [
        ("A black apple, and a green backpack.", {"category": "Colors"}),
        ("A storefront with 'Hello World' written on it.", {"category": "Text"}),
    ]
    assert record["categories"] == {"Colors": 2, "Text": 1}
    assert record["source"]["sha256"] == file_sha256(source)
    assert "3 prompts, and DrawBench has 200: figures will not be comparable" in (
        " ".join(capsys.readouterr().out.split())
    )


def test_a_whole_set_has_no_warning(tmp_path):
    rows = "".join(f"prompt {n},Colors\n" for n in range(SETS["drawbench"].count))
    source = written(tmp_path, "drawbench.csv", f"Prompts,Category\n{rows}")
    assert prepared(tmp_path, "drawbench", source)[1]["warnings"] == []


def test_partiprompts(tmp_path):
    source = written(tmp_path, "PartiPrompts.tsv", PARTI)
    prompts, record = prepared(tmp_path, "parti", source)
    assert [p.text for p in prompts] == ['a cat "wearing" a hat', "the word 'START'"]
    assert prompts[1].metadata == {
        "category": "Abstract",
        "challenge": "Writing & Symbols",
        "note": "a note",
    }
    assert record["categories"] == {"Animals": 1, "Abstract": 1}


def test_geneval(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in GENEVAL)
    source = written(tmp_path, "evaluation_metadata.jsonl", lines)
    prompts, record = prepared(tmp_path, "geneval", source)
    whole = GENEVAL[1] | {"category": "counting"}
    assert prompts[1].text == whole.pop("prompt") and prompts[1].metadata == whole
    assert record["categories"] == {"single_object": 1, "counting": 1}


def test_compbench(tmp_path):
    for name in COMPBENCH:
        written(tmp_path, f"{name}_val.txt", f'a {name} "one"\n\nanother {name} \n')
        written(tmp_path, f"{name}_train.txt", f"a {name} to train on\n")
    prompts, record = prepared(tmp_path, "t2i-compbench", tmp_path)
    assert prompts[0].text == 'a color "one"' and prompts[0].metadata == {"category": "color"}
    assert record["categories"] == dict.fromkeys(COMPBENCH, 2) and record["split"] == "val"
    (tmp_path / "complex_train.txt").unlink()
    prompts, record = prepared(tmp_path, "t2i-compbench", tmp_path, split="train")
    assert [p.text for p in prompts] == [f"a {name} to train on" for name in COMPBENCH[:-1]]
    assert record["warnings"] == [f"{tmp_path} has no file of complex"]


def test_dpg_bench_has_a_row_for_each_prompt_with_its_questions(tmp_path):
    source = written(tmp_path, "dpg_bench.csv", DPG)
    prompts, record = prepared(tmp_path, "dpg", source)
    assert [p.text for p in prompts] == ["A red truck, on sand.", "Waves at dusk."]
    assert prompts[0].metadata["id"] == "one7" and prompts[0].metadata["questions"][1] == {
        "id": 2,
        "dependency": [1],
        "category": "attribute",
        "tuple": "attribute - color (truck, red)",
        "question": "Is it red?",
    }
    assert prompts[0].metadata["questions"][0]["dependency"] == []
    assert record["rows"] == {"total": 2, "usable": 2}


def test_dpg_bench_as_a_folder_of_prompts(tmp_path):
    (tmp_path / "prompts").mkdir()
    written(tmp_path / "prompts", "256.txt", "Waves\nat dusk.\n")
    written(tmp_path / "prompts", "1.txt", "A truck.")
    prompts, _ = prepared(tmp_path, "dpg", tmp_path / "prompts")
    assert [(p.text, p.metadata["id"]) for p in prompts] == [
        ("A truck.", "1"),
        ("Waves at dusk.", "256"),
    ]


def test_repeated_prompts_are_kept_and_said(tmp_path):
    source = written(tmp_path, "drawbench.csv", DRAWBENCH + "A red colored car.,Conflicting\n")
    prompts, record = prepared(tmp_path, "drawbench", source)
    assert len(prompts) == 4
    assert "1 of the prompts equal an earlier one; all are kept, as published" in record["warnings"]


WRONG = {
    "drawbench": ("a.csv", "Prompts\na car\n", "has no category beside its prompts"),
    "parti": ("a.tsv", "a cat\tAnimals\n", "a header with the column Prompt"),
    "geneval": ("a.jsonl", '{"prompt": "a bench"}\n', "a string under 'tag'"),
    "dpg": ("a.csv", "item_id,text\n1,a truck\n", "has no column proposition_id, dependency"),
    "t2i-compbench": ("a.txt", "a car\n", r"has none of color_val.txt, .*examples/dataset"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_file_is_refused_and_nothing_is_written(tmp_path, name):
    file, text, message = WRONG[name]
    with pytest.raises(PromptError, match=message):
        prepared(tmp_path, name, written(tmp_path, file, text))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new"), [("Waves", '"Waves'), (",1,0,", ",one,0,"), ("Are there waves?", "")]
)
def test_a_damaged_dpg_bench_is_refused(tmp_path, old, new):
    with pytest.raises(PromptError, match=r"dpg_bench.csv"):
        prepared(tmp_path, "dpg", written(tmp_path, "dpg_bench.csv", DPG.replace(old, new)))
