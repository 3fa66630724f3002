"""Hostile configs: parsed, or refused in one line; nothing is run by parsing what is no class of ours."""

import contextlib
import io
import random
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from experiments.config_guard import MOST_DEPTH, UnreadableConfigError, check_yaml
from experiments.early_checks import check_diffusion_model
from tests.hostile.corpus import mutated
from tests.hostile.harness import run_hostile

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
CLASS = re.compile(r"(?<=class_path: )[\w.]+\.\w+")
PARSERS = {}
ODD = (
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    float("nan"),
    "",
    "x" * 3000,
    [],
    {},
    [[]],
    {"class_path": "os.system"},
    "null",
)
ODD += (
    "${oc.env:HOME}",
    "${",
    "${nope:1}",
    "${trainer}",
    "${..}",
    "${a:" * 300 + "}" * 300,
    "\ud800",
    "!!python",
    "1e3",
)
ODD += ({"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "pwned"]}}, {"init_args": {}}, "os.system")
TAGS = (
    "!!python/object/apply:os.system ['touch pwned']",
    "!!python/name:os.system",
    "!!python/module:antigravity",
    "!x 1",
)
TAGS += (
    "!!binary x",
    "!!timestamp x",
    "!!float x",
    "!!int 0x",
    "!!set {a: 1}",
    "!!omap [1]",
    "&a [*a]",
    "{<<: 1}",
    "? {}",
)


def bomb(levels):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, levels)]
    return "\n".join(lines)


def damaged(value, rng):
    """The value with an odd one at some place, or a place lost, doubled or renamed."""
    if rng.random() < 0.2 or not isinstance(value, dict | list) or not value:
        return rng.choice(ODD)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        return [*value[:place], damaged(value[place], rng), *value[place + 1 :]]
    key = rng.choice(list(value))
    turn = rng.randrange(6)
    if turn == 0:
        return {name: each for name, each in value.items() if name != key}
    if turn == 1:
        return value | {rng.choice(("nope", "", "class_path", "init_args", "a.b", "config")): rng.choice(ODD)}
    return value | {key: damaged(value[key], rng)}


def make(case, folder):
    rng = random.Random(case)
    text = rng.choice(CONFIGS).read_text(encoding="utf-8")
    turn = rng.randrange(4)
    if turn == 0:
        data = mutated(text.encode(), rng)
    elif turn == 1:
        data = f"{text}\n{rng.choice(('trainer', 'seed_everything', 'x'))}: {rng.choice(TAGS)}\n".encode()
    else:
        content = yaml.safe_load(text)
        for _ in range(rng.randint(1, 3)):
            content = damaged(content, rng)
        data = yaml.dump(content, allow_unicode=True).encode("utf-8", "backslashreplace")
    path = folder / "hostile.yaml"
    path.write_bytes(data)
    return path


def target(path, folder):
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            check_diffusion_model(["fit", "--config", str(path), "--print_config"])
            parser().parse_args(["fit", "--config", str(path)])
    except SystemExit as stop:
        if stop.code == 2:
            raise ValueError(told.getvalue().removesuffix("\n")) from None  # one line, as the harness checks
        raise
    except (ValueError, OSError) as error:  # which the command puts into one line
        raise ValueError(" ".join(str(error).split())) from error


def parser():
    """The parser of the trainer's commands, made once."""
    if not PARSERS:
        from experiments.trainer_cli import SealmarkCLI, run

        class Made(BaseException):
            pass

        def keep(cli, parser, args):
            PARSERS["trainer"] = parser
            raise Made

        # Reading must not import libraries, which may start processes.
        for name in sorted(
            {found[0] for path in CONFIGS for found in CLASS.finditer(path.read_text(encoding="utf-8"))}
        ):
            import_module(name.rpartition(".")[0])
        # Nor ask another interpreter for its paths, as jsonargparse's finder of type stubs does, once.
        import_module("jsonargparse._stubs_resolver").get_stubs_resolver()
        with pytest.MonkeyPatch.context() as patched, contextlib.suppress(Made):
            patched.setattr(SealmarkCLI, "parse_arguments", keep)
            run()
    return PARSERS["trainer"]


def fuzz(inputs, tmp_path):
    parser().parse_args(["fit", "--config", str(ROOT / "configs/watermark_segmentation/quickstart.yaml")])
    return run_hostile(target, inputs, make=make, seconds=60, megabytes=300, sandbox=tmp_path)


@pytest.mark.slow
def test_a_few_mutated_configs(tmp_path):
    fuzz(range(60), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("count", [2_000])
def test_many_mutated_configs(count, tmp_path):
    fuzz(range(count), tmp_path)


UNBOUNDED = {
    "nesting of lists": "a: " + "[" * 100_000,
    "nesting of objects": "a: " + "{b: " * 100_000,
    "nesting of indents": "- " * 50_000,
    "aliases of aliases": bomb(9),
    "a list that holds itself": "a: &a [*a]",
    "merged aliases": bomb(6) + "\nb: {<<: [*a5, *a5]}",
    "a number in base sixty": "a: 1" + ":1" * 500_000,
    "a long text": "a: " + "x" * 5_000_000,
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_what_stands_for_too_much_is_refused_before_it_is_built(name, tmp_path):
    def reader(case, folder):
        with pytest.raises(UnreadableConfigError):
            check_yaml(UNBOUNDED[name])

    assert run_hostile(reader, [0], seconds=20, megabytes=100, sandbox=tmp_path).taken == 1


def test_what_is_meant_is_not_refused():
    check_yaml("[" * MOST_DEPTH + "]" * MOST_DEPTH)
    check_yaml(bomb(4))
    check_yaml("a: &a {b: 1}\nc: [*a, *a]")
    for path in CONFIGS:
        check_yaml(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("text", ["n: ${n}", "n: ${", "n: ${nope:1}", "n: " + "'" + "${a:" * 300 + "}" * 300 + "'"])
@pytest.mark.parametrize("mode", ["omegaconf+"])
def test_what_cannot_be_resolved_is_one_mistake(text, mode, tmp_path):
    from experiments.one_line import OneLineParser

    parser = OneLineParser(parser_mode=mode)
    parser.add_argument("--config", action="config")
    parser.add_argument("--n", type=int)
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"a value of the config (cannot be resolved: .*; correct it|is of a kind)"):
        parser.parse_args(["--config", str(tmp_path / "a.yaml")])


@pytest.mark.parametrize("mode", ["yaml", "omegaconf+"])
@pytest.mark.parametrize("name", ["nesting of lists", "aliases of aliases", "a list that holds itself"])
def test_every_parser_of_ours_keeps_the_bounds(mode, name, tmp_path, capsys):
    from experiments.one_line import OneLineParser

    parser = OneLineParser(parser_mode=mode)
    parser.add_argument("--config", action="config")
    parser.add_argument("--n", type=int)
    (tmp_path / "a.yaml").write_text(UNBOUNDED[name])
    with pytest.raises(SystemExit):
        parser.parse_args(["--config", str(tmp_path / "a.yaml")])
    assert "Problems parsing config: line " in capsys.readouterr().err


def test_no_tag_of_python_is_obeyed_and_no_pipe_is_emptied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for tag in TAGS:
        (tmp_path / "a.yaml").write_text(f"model: {tag}")
        check_diffusion_model(["fit", "--config", "a.yaml"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]
    assert "antigravity" not in sys.modules
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("was read"))
    check_diffusion_model(["fit", "--config", "/dev/zero"])
