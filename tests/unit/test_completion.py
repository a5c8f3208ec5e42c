"""Completion in real shells. zsh and fish are only tried where they are installed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from terminals import Terminal

from replay_app.cli import program_parser, run
from replay_app.help_examples import EXAMPLES
from replay_app.states import TERMINAL

pytestmark = pytest.mark.usefixtures("clean_environment")
BASH = r"""
replay-app() { printf '%s\n' r-1 r-2 '$(touch injected)'; }
source "$1"
shift
COMP_LINE="$*"
COMP_POINT=${#COMP_LINE}
compopt() { :; }
_replay_app
printf '%s\n' "${COMPREPLY[@]}"
"""
WORDS = [
    (["replay-app", ""], {"start", "list", "completion", "watch"}, {"r-1", "--all"}),
    (["replay-app", "sta"], {"start", "status"}, {"list"}),
    (["replay-app", "--json", "--url", "http://x", "des"], {"describe"}, {"start"}),
    (["replay-app", "start", "--to"], {"--to", "--to-topic", "--to-original"}, {"--all"}),
    (["replay-app", "start", "--ordering", ""], {"global", "aggregate"}, {"start"}),
    (["replay-app", "start", "--on-error", "sk"], {"skip"}, {"fail"}),
    (["replay-app", "list", "--state", ""], set(TERMINAL), {"r-1"}),
    (["replay-app", "list", "-o", "w"], {"wide"}, {"json"}),
    (["replay-app", "start", "--start", "y"], {"yesterday"}, {"today"}),
    (["replay-app", "pause", ""], {"@last", "r-1", "r-2"}, {"--chain"}),
    (["replay-app", "pause", "r-"], {"r-1", "r-2"}, {"@last"}),
    (["replay-app", "completion", ""], {"bash", "zsh", "fish"}, {"r-1"}),
    (["replay-app", "apply", "sho"], {"shop.yaml"}, {"r-1"}),
    (["replay-app", "start", "--file", "sho"], {"shop.yaml"}, {"r-1"}),
]

IDS = [" ".join(words) for words, *_ in WORDS]
TYPED = [
    ("watch @l", "watch @last"),
    ("watch r-", "watch r-1"),
    ("start --after @l", "start --after @last"),
    ("list --state=runn", "list --state=running"),
    ("--url http://x:1 li", "--url http://x:1 list"),
    ("apply my\\ ch", "apply my chain.yaml"),
    ("apply fold", "apply folder/"),
]
"""What a person types before the tabulator, and the command that then runs."""


@pytest.fixture
def script(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, request: pytest.FixtureRequest
) -> Path:
    """Return the script of a shell, in a folder with a file to complete."""
    (tmp_path / "shop.yaml").touch()
    assert run(["completion", request.param]) == 0
    path = tmp_path / f"completion.{request.param}"
    path.write_text(capsys.readouterr().out)
    return path


def shell(*command: str, folder: Path) -> list[str]:
    """Return the lines that a shell prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", ["bash"], indirect=True)
@pytest.mark.parametrize(("words", "some", "none"), WORDS, ids=IDS)
def test_bash_completes_commands_options_values_and_ids(
    words: list[str], some: set[str], none: set[str], script: Path
) -> None:
    found = shell("bash", "-c", BASH, "bash", str(script), *words, folder=script.parent)
    assert some <= {*found}
    assert not none & {*found}
    assert not (script.parent / "injected").exists()


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_completes_what_a_person_types(script: Path) -> None:
    (script.parent / "my chain.yaml").touch()
    (script.parent / "folder").mkdir()
    place: Any = SimpleNamespace(folder=script.parent, environment={"PATH": os.environ["PATH"]})
    with Terminal(place, "--norc", "--noprofile", "-i", command=["bash"]) as terminal:
        ids = 'if [[ "$*" == "list -o name --quick"* ]]; then echo r-1; fi'
        terminal.type(f'replay-app() {{ {ids}; echo "ran:$*:"; }}; source {script.name}\n')
        terminal.type("echo is-$((1 + 1))-ready\n").until("is-2-ready")
        for typed, command in TYPED:
            terminal.type(f"replay-app {typed}\t\n").until(f"ran:{command}")


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish here")
@pytest.mark.parametrize("script", ["fish"], indirect=True)
@pytest.mark.parametrize(("words", "some", "none"), WORDS, ids=IDS)
def test_fish_completes_commands_options_values_and_ids(
    words: list[str], some: set[str], none: set[str], script: Path
) -> None:
    code = "function replay-app; printf '%s\\n' r-1 r-2; end; source $argv[1]; complete -C $argv[2]"
    line = " ".join(words)
    lines = shell("fish", "--no-config", "-c", code, str(script), line, folder=script.parent)
    found = {one.partition("\t")[0] for one in lines}
    assert some <= found
    assert not none & found


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh here")
@pytest.mark.parametrize("script", ["zsh"], indirect=True)
@pytest.mark.parametrize(("words", "some", "none"), WORDS, ids=IDS)
def test_zsh_completes_commands_options_values_and_ids(
    words: list[str], some: set[str], none: set[str], script: Path
) -> None:
    # The functions of zsh's completion system, as far as the script uses them.
    code = r"""
    replay-app() { print -l r-1 r-2 }
    compdef() { : }
    _files() { print -l shop.yaml }
    compadd() { print -l -- "${@:#--}" }
    _describe() { for one in "${(@P)@[-1]}"; do print -r -- "${one%%:*}"; done }
    source $1; shift
    words=("$@"); CURRENT=$#
    _replay_app
    """
    found = set(shell("zsh", "-f", "-c", code, "zsh", str(script), *words, folder=script.parent))
    begin = words[-1]
    assert some <= found
    assert not none & {one for one in found if one.startswith(begin)}


@pytest.mark.parametrize("command", sorted(EXAMPLES))
def test_every_command_has_examples_that_can_be_typed(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run([command, "--help"])
    shown = capsys.readouterr().out
    assert EXAMPLES[command]
    for line in EXAMPLES[command]:
        assert f"  {line}\n" in shown
        (typed,) = re.findall(r"replay-app ([^<>)]*)", line)[:1]
        words = shlex.split(typed)
        assert words[0] == command
        program_parser().parse_args(words)
