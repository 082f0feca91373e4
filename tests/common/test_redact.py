"""What counts as a secret in a text, and what does not."""

from __future__ import annotations

import pytest

from prefopt.common.redact import printable, redact, without_control

LONG = "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3z_"  # 35 characters


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("git clone https://s3cr3t@host/x.git", "git clone https://[hidden]@host/x.git"),
        ("https://me:pass@host/x", "https://[hidden]@host/x"),
        ("postgres://me:pass@host/x", "postgres://[hidden]@host/x"),
        ("s3.aws.com/k?X-Amz-Date=2026&X-Amz-Signature=0123456789abcdef&a=b",
         "s3.aws.com/k?X-Amz-Date=2026&X-Amz-Signature=[hidden]&a=b"),
        ("https://host/file?token=abcdefgh12", "https://host/file?token=[hidden]"),
        ("https://x.blob/f?sv=2022&sig=ab%2Fcd%3D12", "https://x.blob/f?sv=2022&sig=[hidden]"),
        ("<a href='https://x/f?a=1&amp;sig=abcdefgh'>", "<a href='https://x/f?a=1&amp;sig=[hidden]'>"),
        ("curl -H 'Authorization: Bearer abcdef.0123456789.xyz'", "curl -H 'Authorization: Bearer [hidden]'"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZDE=", "Authorization: Basic [hidden]"),
        (f"glpat-{LONG[:20]} rest", "[hidden] rest"),
        (f"key AIza{LONG}", "key [hidden]"),
        (f"hf_{LONG[:-1]}, sk-{LONG}", "[hidden], [hidden]"),
        ("sk-" + "a" * 24, "[hidden]"),
        ("ghp_" + "A1" * 12 + " and more", "[hidden] and more"),
    ],
)  # fmt: skip
def test_secrets_are_hidden(text: str, kept: str) -> None:
    assert redact(text) == kept
    assert redact(kept) == kept, "once more changes nothing"


@pytest.mark.parametrize(
    "text",
    [
        "the bearer of responsibilities is the teacher, the bearer of bad news",
        "Bearer internationalization-of-everything",
        "a token=value pair, tokens, tokenizer, max_tokens=128, sig=nificant",
        "is this signed? token = x; https://host/x?page=2&sort=name",
        "git@github.com:me/x.git and ssh://git@host/x and me@example.org",
        "https://host/models@v1.0 and https://host/@user/post, https://host?mail=me@host",
        "task-specific-preference-optimization, risk-averse-reinforcement-learning",
        "glpat-short, AIza, hf_hub, no secret, no password",
        "no token, no tokenizer, hf_hub",
    ],
)
def test_ordinary_texts_are_left_alone(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "WANDB_KEY", "DB_PASS", "REGISTRY_AUTH", "KEY", "SSH_PASSPHRASE", "DB_PWD", "MY_TOKEN"]
)
def test_values_of_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "c0rrect horse")
    assert redact("a c0rrect horse, and a horse") == "a [hidden], and a horse"


def test_a_secret_that_is_part_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "0123456789")
    monkeypatch.setenv("B_TOKEN", "0123456789-abcdef")
    assert redact("x 0123456789-abcdef 0123456789") == "x [hidden] [hidden]"


@pytest.mark.parametrize(
    ("name", "value"),
    [("DB_AUTH", "required"), ("KEYBOARD", "standard"), ("COMPASS", "northwest"), ("MONKEY", "chimpanzee"),
     ("AUTHOR", "somebody"), ("MY_KEY", "short"), ("MY_KEY", "/usr/lib")],
)  # fmt: skip
def test_what_is_no_secret_of_the_environment(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert redact(f"this is {value} here") == f"this is {value} here"


def test_control_characters_are_visible_not_obeyed() -> None:
    assert printable("a\x1b[31mred\x07\u202e\n\tb é 漢") == "a\\x1b[31mred\\x07\\u202e\n\tb é 漢"
    assert printable("\ud800") == "\\ud800"


def test_pages_keep_what_joins_letters() -> None:
    text = "a\x1b[2J\x07\x9b31m\u202eb\ud800 \u200d\u0646\u200c\n\tc"
    assert without_control(text) == "a\\x1b[2J\\x07\\x9b31m\\u202eb\\ud800 \u200d\u0646\u200c\n\tc"
    assert without_control(without_control(text)) == without_control(text)
