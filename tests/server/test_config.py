"""Flags over environment over a file over defaults; what is shown of it, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cellar_server import config_text
from cellar_server.cli import main
from cellar_server.config import Config, from_args, read
from cellar_server.limits import Limits
from cellar_server.rights import Rights, rights_of
from cellar_server.runtime.base import StartupError
from cellar_server.tables import option, parse
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]


def in_file(folder: Path, text: str) -> str:
    (folder / "cellar.toml").write_text(text)
    return str(folder / "cellar.toml")


def test_flags_are_stronger_than_the_environment() -> None:
    environment = {"CELLAR_MAX_SESSIONS": "5", "CELLAR_DRAIN_S": "2.5", "CELLAR_SPIN": "yes"}
    config = from_args(["--max-sessions", "7"], environment)
    assert (config.max_sessions, config.drain_s, config.spin) == (7, 2.5, True)
    assert config.listen == Config().listen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "nowhere"], "HOST:PORT"),
        (["--max-sessions", "many"], "no int"),
        (["--max-sessions", "0"], "too small"),
        (["--provider", "tpu"], "not one of cpu, cuda"),
        (["--metrics-listen", "9464"], "metrics_listen: '9464' is not HOST:PORT"),
        (["--trace-sample", "1.5"], "not a part"),
        (["--trace-sample", "-0.5"], "too small"),
        (["--channelz", "--transport", "native"], "use transport aio"),
    ],
)
def test_bad_values_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        from_args(arguments, {})


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(SystemExit):
        from_args(["--nonsense", "1"], {})


def test_the_file_is_the_weakest(tmp_path: Path) -> None:
    path = in_file(tmp_path, 'max_sessions = 1\nmax_chunk = 2\ndrain_s = 3\nmodels = "zoo"\nspin = true\n')
    environment = {"CELLAR_MAX_CHUNK": "20", "CELLAR_DRAIN_S": "30"}
    settings = read(["--config", path, "--drain-s", "300"], environment)
    config = settings.config
    assert (config.max_sessions, config.max_chunk, config.drain_s) == (1, 20, 300.0)
    assert (config.models, config.spin) == (Path("zoo"), True)
    names = ("max_sessions", "max_chunk", "drain_s", "listen")
    assert [settings.origins[name] for name in names] == [path, "CELLAR_MAX_CHUNK", "--drain-s", "default"]
    # the environment may name the file; the flag is stronger there too
    assert from_args([], {"CELLAR_CONFIG": path}).max_chunk == 2
    assert from_args(["--config", ""], {"CELLAR_CONFIG": path}) == Config()
    with pytest.raises(StartupError, match="cannot be read"):
        from_args(["--config", str(tmp_path / "missing")], {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_sesions = 5", "no option 'max_sesions'; did you mean 'max_sessions'"),
        ("zzz = 5", "no option 'zzz'$"),
        ('max_sessions = "5"', "max_sessions: '5' is no whole number"),
        ("max_sessions = true", "max_sessions: True is no whole number"),
        ("max_sessions = 5.0", "max_sessions: 5.0 is no whole number"),
        ("max_sessions = 0", "too small"),
        ("drain_s = nan", "too small"),
        ("spin = 1", "spin: 1 is no true or false"),
        ("max_sessions = ", "cannot be read"),
        ("[listen]", "listen: {} is no text"),
        ("rights = 5", "these are tables"),
        ("rights.alice = 5", "this is a table"),
        ('[rights.alice]\ncal = ["*"]', r"\[rights\.\"alice\"\].*'cal'; did you mean 'call'"),
        ('[rights.alice]\ncall = "x"', "call: 'x' is no list of texts"),
        ("[rights.alice]\ncall = [1]", "is no list of texts"),
        ("[rights.alice]\nsee_all = 1", "see_all: 1 is no true or false"),
    ],
)
def test_a_file_that_is_none_is_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(StartupError, match=message):
        from_args(["--config", in_file(tmp_path, text)], {})


VALUES = st.integers() | st.text(max_size=5) | st.booleans() | st.floats() | st.lists(st.text(max_size=5), max_size=3)
KEYS = st.text(max_size=9) | st.sampled_from(["call", "administer", "see_all"])


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_table_is_a_table_of_rights_or_refused(table: dict[str, Any]) -> None:
    try:
        made = parse(Rights, table, "here")
    except StartupError:
        assert table
    else:
        assert set(table) <= {"call", "administer", "see_all"}
        assert made == Rights(**{k: tuple(v) if isinstance(v, list) else v for k, v in table.items()})


def test_other_tables_are_read_the_same_way() -> None:
    @dataclasses.dataclass(frozen=True)
    class Limits:
        rate: float = option(1.0, "calls a second")
        names: tuple[str, ...] = option((), "names")

    Limits.__annotations__ |= {"rate": float, "names": tuple[str, ...]}
    assert parse(Limits, {"rate": 3, "names": ["a"]}, "x") == Limits(3.0, ("a",))
    with pytest.raises(StartupError, match="x: there is no option 'rat'; did you mean 'rate'"):
        parse(Limits, {"rat": 3}, "x")


def test_rights_of_all_patterns_that_fit_add_up() -> None:
    declared = {
        "*": Rights(call=("public-*",)),
        "ops-*": Rights(call=(), administer=("*",)),
        "ops-anna": Rights(call=("secret",), see_all=True),
    }
    anna, ops, anybody = (rights_of(name, declared) for name in ("ops-anna", "ops-bob", "eve"))
    assert [each.may_call("public-1") for each in (anna, ops, anybody)] == [True] * 3
    assert [each.may_call("secret") for each in (anna, ops, anybody)] == [True, False, False]
    assert [each.may_administer("secret") for each in (anna, ops, anybody)] == [True, True, False]
    assert [each.see_all for each in (anna, ops, anybody)] == [True, False, False]
    assert rights_of("eve", {"ops-*": Rights()}) == Rights(call=())
    assert not rights_of("Ops-bob", declared).may_administer("x")  # names are as they are written


SAFE = {"tls_cert": "c", "tls_key": "k"}


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.org:1"])
def test_beyond_the_loopback_it_takes_tls_and_callers_or_a_word(listen: str) -> None:
    with pytest.raises(StartupError, match=r"in the clear.*insecure_listen"):
        Config(listen=listen)
    with pytest.raises(StartupError, match="tokens would travel in the clear"):
        Config(listen=listen, tokens="t")
    with pytest.raises(StartupError, match=r"everybody who reaches it.*insecure_listen"):
        Config(listen=listen, **SAFE)
    assert Config(listen=listen, insecure_listen=True)
    for callers in ({"tokens": "t"}, {"tls_client_ca": "a"}, {"jwks": "j", "jwt_issuer": "i", "jwt_audience": "a"}):
        assert Config(listen=listen, **SAFE, **callers)


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1"])
def test_on_the_loopback_it_takes_neither(listen: str) -> None:
    assert Config(listen=listen).is_loopback


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tls_cert": "c"}, "one does not do without the other"),
        ({"tls_key": "c"}, "one does not do without the other"),
        ({"tls_client_ca": "c"}, "needs tls_cert"),
        ({"jwks": "j"}, "by all three"),
        ({"jwks": "j", "jwt_issuer": "i"}, "by all three"),
        ({"jwt_audience": "i"}, "by all three"),
        ({"jwt_algorithms": "HS256"}, "'HS256' is not one of"),
        ({"jwt_algorithms": "RS256,none"}, "'none' is not one of"),
        ({"jwt_leeway_s": -1.0}, "too small"),
    ],
)
def test_what_belongs_together_is_given_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        Config(**options)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("redis://:hunter2@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://me:hun@ter:2/@host", "redis://me:***@host"),
        ("redis://host:6379?password=hunter2&db=1", "redis://host:6379?password=***&db=1"),
        ("sqlite:///file.db", "sqlite:///file.db"),
        (5, 5),
    ],
)
def test_passwords_are_not_shown(value: object, shown: object) -> None:
    assert config_text.hidden(value) == shown


def test_a_configuration_is_checked_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tokens").write_text(f"{hashlib.sha256(b'secret').hexdigest()} alice\n")
    text = (
        f'models = "{tmp_path}"\ntokens = "{tmp_path}/tokens"\nstore = "redis://:hunter2@127.0.0.1:1"\n'
        '[rights."ali*"]\ncall = ["a", "b*"]\nsee_all = true\n'
        '[caller_limits."*"]\nmax_sessions = 5\n[model_limits.describe]\nmax_steps_per_s = 7\n'
    )
    path = in_file(tmp_path, text)
    assert main(["--config", path, "--max-sessions", "7", "--check-config"]) == 0
    out = capsys.readouterr().out
    assert "max_sessions = 7  # --max-sessions" in out
    assert f'models = "{tmp_path}"  # {path}' in out
    assert 'listen = "127.0.0.1:50051"  # default' in out
    assert "hunter2" not in out
    assert hashlib.sha256(b"secret").hexdigest() not in out
    # what is shown is a file: the same configuration, but for what is hidden
    again = from_args(["--config", in_file(tmp_path, out)], {})
    assert again.rights == {"ali*": Rights(("a", "b*"), (), True)}
    assert again.caller_limits == {"*": Limits(max_sessions=5)}
    assert again.model_limits == {"describe": Limits(max_steps_per_s=7)}
    assert set(tomllib.loads(out)) == {each.name for each in dataclasses.fields(Config)}
    # the files that it names are read
    (tmp_path / "tokens").write_text("nonsense")
    path = in_file(tmp_path, text)
    assert main(["--config", path, "--check-config"]) == 1
    assert "line 1" in capsys.readouterr().err
    assert main(["--models", str(tmp_path / "missing"), "--check-config"]) == 1
    assert "is no folder" in capsys.readouterr().err
    assert main(["--listen", "0.0.0.0:1", "--check-config"]) == 1
    assert "insecure_listen" in capsys.readouterr().err


def test_the_page_of_options_is_current() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == config_text.document(), "run `make config-docs`"


def test_the_file_on_the_page_about_security_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    config = from_args(["--config", in_file(tmp_path, text.split("```toml\n")[1].split("```")[0])], {})
    assert config.listen == "0.0.0.0:50051"
    assert config.rights["anna"].administer == ("*",)
    assert {name for name in re.findall(r"`([a-z]+_[a-z_]+)`", text)} & set(config_fields()) == {
        "tls_cert",
        "tls_key",
        "tls_client_ca",
        "insecure_listen",
        "jwt_issuer",
        "jwt_audience",
        "jwt_leeway_s",
        "jwt_algorithms",
        "metrics_listen",
    }


def config_fields() -> list[str]:
    return [each.name for each in dataclasses.fields(Config)]


def test_every_option_says_what_it_is() -> None:
    page = config_text.document()
    for each in dataclasses.fields(Config):
        assert each.metadata["help"]
        assert f"`{each.name}`" in page or f"[{each.name}." in page
