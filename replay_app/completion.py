"""Completion scripts for bash, zsh and fish, made from the parser.

The scripts know commands, options and values without starting Python. Only the ids of replays come
from ``replay-app list``. The generator is our own: of the libraries, shtab cannot complete fish
behind an option's value (its issue 228), and argcomplete starts the program at each key.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

from replay_app.arguments import LAST, AddCommand, PlainParser
from replay_app.exit_codes import DONE
from replay_app.states import State

PROGRAM = "replay-app"
VALUES: dict[str, tuple[str, ...]] = {
    "STATE": get_args(State),
    "TIME": ("now", "today", "yesterday", "1h", "1d"),
}
"""By metavar: values that an option takes, or examples of them."""
IDS = f"{PROGRAM} list -o name --quick"
"""The command that gives the ids of replays."""
FILES = ("file", "out", "data_dir")
"""The destinations of arguments that are files."""


@dataclass(frozen=True)
class _Option:
    """An option of a command."""

    names: tuple[str, ...]
    text: str
    takes_value: bool
    is_file: bool
    is_replay: bool
    words: tuple[str, ...]


@dataclass(frozen=True)
class _Command:
    """A command; the options of the program itself belong to a command without a name."""

    name: str
    text: str
    options: tuple[_Option, ...]
    takes_replay: bool
    takes_file: bool
    words: tuple[str, ...]
    """The values of its positional argument."""


def add_completion_command(
    add: AddCommand, parent: PlainParser, parser_of: Callable[[], PlainParser]
) -> None:
    """Add the command to the parser; ``parser_of`` makes the parser of the whole program."""
    command = add(
        "completion",
        lambda options: _completion(options, parser_of()),
        "Print a script that completes commands, options and ids in a shell",
        parent,
    )
    command.add_argument("shell", choices=list(SCRIPTS))


def _completion(options: Namespace, parser: PlainParser) -> int:
    print(script(options.shell, parser), end="")  # noqa: T201 - the output; a shell reads it
    return DONE


def script(shell: str, parser: PlainParser) -> str:
    """Return the completion script of a shell; ends with a line break."""
    return "\n".join(SCRIPTS[shell](list(_commands(parser)))) + "\n"


def _commands(parser: PlainParser) -> Iterator[_Command]:
    yield _command("", parser)
    for name, command in parser.commands.items():
        yield _command(name, command)


def _command(name: str, parser: PlainParser) -> _Command:
    actions = [one for one in parser.actions if one.help != argparse.SUPPRESS]
    positional = [one for one in actions if not (one.option_strings or parser.is_choice_of(one))]
    return _Command(
        name,
        (parser.description or "").removesuffix("."),
        tuple(map(_option, (one for one in actions if one.option_strings))),
        takes_replay=any(one.dest == "replay_id" for one in positional),
        takes_file=any(one.dest in FILES for one in positional),
        words=tuple(str(word) for one in positional for word in one.choices or ()),
    )


def _option(action: argparse.Action) -> _Option:
    words = tuple(map(str, action.choices or VALUES.get(str(action.metavar), ())))
    text = (action.help or "") % {"default": action.default, "prog": PROGRAM}
    return _Option(
        tuple(action.option_strings),
        text,
        takes_value=action.nargs != 0,
        is_file=action.dest in FILES,
        is_replay=action.dest == "body.after",
        words=words,
    )


def _takers(command: _Command) -> str:
    """Return the options with a value, as a pattern of bash and zsh."""
    return "|".join(name for one in command.options if one.takes_value for name in one.names)


def _value_cases(
    commands: list[_Command],
    words: Callable[[tuple[str, ...]], str],
    files: str,
    replays: str,
) -> Iterator[str]:
    """Yield the branches for the values of options, for bash and zsh."""
    for command in commands:
        rest = []
        for one in command.options:
            if not one.takes_value:
                continue
            pattern = "|".join(f'"{command.name} {name}"' for name in one.names)
            if one.is_replay:
                yield f"        {pattern}) {replays}; return ;;"
            elif one.words:
                yield f"        {pattern}) {words(one.words)}; return ;;"
            elif one.is_file:
                yield f"        {pattern}) {files}; return ;;"
            else:
                rest.append(pattern)
        if rest:
            yield f"        {'|'.join(rest)}) return ;;"


def _command_search(commands: list[_Command], words: str, begin: int, end: str) -> Iterator[str]:
    """Yield the loop of bash and zsh that finds the command among the words before the present one.

    ``words`` is the shell's array of words, of which the program's name stands before ``begin``.
    """
    yield from (
        f"    for ((i = {begin}; i < {end}; i++)); do",
        f'        case "${{{words}[i]}}" in',
        f"            {_takers(commands[0])}) ((i++)) ;;",
        "            -*) ;;",
        f'            *) command="${{{words}[i]}}"; break ;;',
        "        esac",
        "    done",
    )


def _argument_cases(
    commands: list[_Command], words: Callable[[tuple[str, ...]], str], files: str, ids: str
) -> Iterator[str]:
    """Yield the branches for the arguments of commands, for bash and zsh."""
    for command in commands:
        if command.words:
            yield f'        "{command.name}") {words(command.words)} ;;'
        elif command.takes_file:
            yield f'        "{command.name}") {files} ;;'
    takers = "|".join(one.name for one in commands if one.takes_replay)
    yield f"        {takers}) {ids} ;;"


def _bash(commands: list[_Command]) -> Iterator[str]:
    def words(given: tuple[str, ...]) -> str:
        return f'COMPREPLY=($(compgen -W "{" ".join(given)}" -- "$cur"))'

    files = 'mapfile -t COMPREPLY < <(compgen -f -- "$cur"); compopt -o filenames'
    yield from (
        f"# Completion of {PROGRAM} for bash: source <({PROGRAM} completion bash)",
        "_replay_app() {",
        "    local cur prev url=() cut i",
        "    _replay_app_find",
        # bash replaces only what stands behind the last of these characters.
        '    cut="${cur%"${cur##*[=:]}"}"',
        '    for i in "${!COMPREPLY[@]}"; do COMPREPLY[i]="${COMPREPLY[i]#"$cut"}"; done',
        "}",
        "_replay_app_find() {",
        # Not COMP_WORDS: bash splits them at @, = and :, too.
        '    local line="${COMP_LINE:0:COMP_POINT}" command="" word i last',
        "    local -a given",
        # Without -r: a backslash keeps a space in its word.
        '    read -a given <<< "$line"',
        '    if [[ "$line" == *[[:space:]] ]]; then given+=(""); fi',
        "    last=$((${#given[@]} - 1))",
        '    cur="${given[last]}" prev="${given[last-1]}"',
        '    if [[ "$cur" == --*=* ]]; then prev="${cur%%=*}" cur="${cur#*=}"; fi',
        "    COMPREPLY=()",
        "    for ((i = 1; i < last - 1; i++)); do",
        '        if [[ "${given[i]}" == --url ]]; then url=(--url "${given[i+1]}"); fi',
        "    done",
        *_command_search(commands, "given", 1, "last"),
        '    case "$command $prev" in',
        *_value_cases(commands, words, files, "_replay_app_ids"),
        "    esac",
        '    if [[ "$cur" == -* ]]; then',
        '        case "$command" in',
    )
    for command in commands:
        names = tuple(name for one in command.options for name in one.names)
        yield f'            "{command.name}") {words(names)} ;;'
    yield from ("        esac", "        return", "    fi", '    case "$command" in')
    yield f'        "") {words(tuple(one.name for one in commands if one.name))} ;;'
    yield from _argument_cases(commands, words, files, "_replay_app_ids")
    yield from (
        "    esac",
        "}",
        "_replay_app_ids() {",
        "    local word",
        # Not by compgen -W, which would expand what the ids contain.
        "    while IFS= read -r word; do",
        '        if [[ "$word" == "$cur"* ]]; then COMPREPLY+=("$word"); fi',
        f'    done < <(echo "{LAST}"; {IDS} "${{url[@]}}" 2>/dev/null)',
        "}",
        f"complete -F _replay_app {PROGRAM}",
    )


def _zsh(commands: list[_Command]) -> Iterator[str]:
    def words(given: tuple[str, ...]) -> str:
        return f"compadd -- {' '.join(given)}"

    zsh_ids = f'compadd -- {LAST} ${{(f)"$({IDS} 2>/dev/null)"}}'
    yield from (
        f"#compdef {PROGRAM}",
        "_replay_app() {",
        '    local command="" prev="${words[CURRENT-1]}" i',
        "    local -a found",
        *_command_search(commands, "words", 2, "CURRENT"),
        '    case "$command $prev" in',
        *_value_cases(commands, words, "_files", zsh_ids),
        "    esac",
        '    if [[ "${words[CURRENT]}" == -* ]]; then',
        '        case "$command" in',
    )
    for command in commands:
        pairs = [(name, one.text) for one in command.options for name in one.names]
        yield f'            "{command.name}") found=({_described(pairs)}) ;;'
    yield from (
        "        esac",
        "        _describe -o option found",
        "        return",
        "    fi",
        '    case "$command" in',
    )
    named = [(one.name, one.text) for one in commands if one.name]
    yield f'        "") found=({_described(named)}); _describe command found ;;'
    yield from _argument_cases(commands, words, "_files", zsh_ids)
    yield from (
        "    esac",
        "}",
        'if [[ "$funcstack[1]" == _replay_app ]]; then',
        '    _replay_app "$@"',
        "else",
        f"    compdef _replay_app {PROGRAM}",
        "fi",
    )


def _described(pairs: list[tuple[str, str]]) -> str:
    return " ".join(_quoted(f"{name}:{text}") for name, text in pairs)


def _quoted(text: str) -> str:
    """Quote a text for zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


def _fish(commands: list[_Command]) -> Iterator[str]:
    yield from (
        f"# Completion of {PROGRAM} for fish",
        "function __replay_app_command",
        "    set -l words (commandline -opc)",
        "    set -e words[1]",
        "    while set -q words[1]",
        "        switch $words[1]",
        f"            case {_takers(commands[0]).replace('|', ' ')}",
        "                set -e words[1]",
        "            case '-*'",
        "            case '*'",
        "                echo $words[1]",
        "                return",
        "        end",
        "        set -e words[1]",
        "    end",
        "end",
        "function __replay_app_is",
        "    set -l command (__replay_app_command)",
        '    test "$command" = "$argv[1]"',
        "end",
        f"complete -c {PROGRAM} -f",
    )
    for command in commands:
        begin = f"complete -c {PROGRAM} -n '__replay_app_is \"{command.name}\"'"
        if command.name:
            text = _fish_quoted(command.text)
            yield f"complete -c {PROGRAM} -n '__replay_app_is \"\"' -a {command.name} -d {text}"
        for one in command.options:
            kinds = {True: "-l", False: "-s"}
            names = " ".join(f"{kinds[n.startswith('--')]} {n.lstrip('-')}" for n in one.names)
            value = ""
            if one.takes_value:
                value = " -r -F" if one.is_file else " -x"
                value += f" -a {_fish_quoted(' '.join(one.words))}" if one.words else ""
                value += f" -a '{LAST} ({IDS} 2>/dev/null)'" if one.is_replay else ""
            yield f"{begin} {names}{value} -d {_fish_quoted(one.text)}"
        if command.words:
            yield f"{begin} -a {_fish_quoted(' '.join(command.words))}"
        if command.takes_file:
            yield f"{begin} -F"
        if command.takes_replay:
            yield f"{begin} -a '{LAST} ({IDS} 2>/dev/null)'"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS: dict[str, Callable[[list[_Command]], Iterator[str]]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}
"""What makes the lines of each shell's script."""
