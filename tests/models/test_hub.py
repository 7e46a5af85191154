"""Checkpoints of the Hugging Face Hub, fetched by its own client from a server that answers as the Hub does."""

from __future__ import annotations

import hashlib
import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import load_file, save_file

from flash_export.errors import CheckpointError, ConfigError
from flash_export.models.checkpoint import load_checkpoint
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.hub import fetch_checkpoint, is_on_hub

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("huggingface_hub")

COMMIT, OLD_COMMIT = "c" * 40, "d" * 40


class Hub(BaseHTTPRequestHandler):
    """Serves the folder of each repository, ``ORG/NAME``, and notes which files were asked for."""

    def __init__(self, root: Path, asked: list[str], *args: object) -> None:
        self.root, self.asked = root, asked
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None: ...

    def _answer(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        is_listing = parts[:2] == ["api", "models"]
        repository, rest = ("/".join(parts[2:4]), parts[4:]) if is_listing else ("/".join(parts[:2]), parts[2:])
        folder = self.root / repository
        revision = rest[1] if len(rest) > 1 else "main"
        if not folder.is_dir():
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "v1", COMMIT, OLD_COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif is_listing:
            commit = OLD_COMMIT if revision == "v1" else revision if len(revision) == 40 else COMMIT
            files = [
                {"rfilename": str(file.relative_to(folder))} for file in sorted(folder.rglob("*")) if file.is_file()
            ]
            facts = {"_id": "0", "id": repository, "sha": commit, "siblings": files, "private": False}
            tree = [
                {"type": "file", "path": f["rfilename"], "size": (folder / f["rfilename"]).stat().st_size, "oid": "0"}
                for f in files
            ]
            self._send(
                200, json.dumps(tree if rest[:1] == ["tree"] else facts).encode(), {"Content-Type": "application/json"}
            )
        elif (file := folder.joinpath(*rest[2:])).is_file():
            if self.command == "GET":
                self.asked.append(file.name)
            content = file.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            self._send(200, content, {"ETag": f'"{digest}"', "X-Repo-Commit": revision})
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": revision})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def hub(tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve a folder of repositories; the cache is empty."""
    root = tmp_path / "hub"
    root.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, root, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield root
    server.shutdown()
    server.server_close()


def save_model(folder: Path) -> FlashModel:
    torch.manual_seed(0)
    model = FlashModel(FlashConfig(40, dim=16, depth=1, hidden_dim=16, chunk_size=4, qk_dim=8, causal=True)).eval()
    model.save_pretrained(folder)
    (folder / "README.md").write_text("# A model")
    (folder / "training.bin").write_bytes(b"0" * 1000)
    return model


def check_same(name: str, model: FlashModel) -> None:
    loaded = load_checkpoint(name).model
    for key, expected in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["hf://team/flash", "hf:/team/flash"])
def test_a_repository_is_a_checkpoint_and_the_commit_is_written_down(hub: Path, asked: list[str], name: str) -> None:
    model = save_model(hub / "team" / "flash")
    check_same(name, model)
    assert set(asked) == {"config.json", "model.safetensors"}, "what is no checkpoint is left where it is"
    provenance = load_checkpoint(name).provenance
    assert provenance["source"] == f"hf://team/flash@{COMMIT}/model.safetensors"
    assert provenance["format"] == "flash-export"
    assert provenance["sha256"] == hashlib.sha256((hub / "team/flash/model.safetensors").read_bytes()).hexdigest()


def test_a_revision_is_pinned(hub: Path) -> None:
    model = save_model(hub / "team" / "flash")
    check_same("hf://team/flash@v1", model)
    assert load_checkpoint("hf://team/flash@v1").provenance["source"].startswith(f"hf://team/flash@{OLD_COMMIT}/")


def test_what_is_in_the_cache_is_fetched_no_more_and_found_without_a_connection(
    hub: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_model(hub / "team" / "flash")
    check_same("hf://team/flash", model)
    before = list(asked)
    check_same("hf://team/flash", model)
    assert asked == before
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    check_same("hf://team/flash", model)
    with pytest.raises(CheckpointError, match="hf://team/other cannot be fetched"):
        load_checkpoint("hf://team/other")


def test_the_folder_of_a_commit_in_the_cache_is_a_checkpoint(hub: Path) -> None:
    model = save_model(hub / "team" / "flash")
    folder = fetch_checkpoint("hf://team/flash").path
    assert (folder / "model.safetensors").is_symlink()
    check_same(str(folder), model)


def test_links_to_elsewhere_are_not_followed_in_the_cache_either(hub: Path, tmp_path: Path) -> None:
    save_model(hub / "team" / "flash")
    folder = fetch_checkpoint("hf://team/flash").path
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match="is a link out of its folder"):
        load_checkpoint(str(folder))


def test_weights_in_several_files_come_with_all_of_them(hub: Path, asked: list[str]) -> None:
    model = save_model(folder := hub / "team" / "flash")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for part in set(places.values()):
        save_file({name: tensors[name] for name, place in places.items() if place == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    check_same("hf://team/flash", model)
    assert {"model.safetensors.index.json", *places.values()} < set(asked)


def test_a_file_is_named_where_it_has_another_name(hub: Path, asked: list[str]) -> None:
    save_model(folder := hub / "team" / "flash")
    weights = folder / "best" / "flash.pt"
    weights.parent.mkdir()
    torch.save(load_file(folder / "model.safetensors"), weights)
    fetched = fetch_checkpoint("hf://team/flash/best/flash.pt")
    assert fetched.path.read_bytes() == weights.read_bytes()
    assert fetched.name == f"hf://team/flash@{COMMIT}"
    assert "model.safetensors" not in asked


def test_a_pointer_names_the_weights(hub: Path) -> None:
    folder = hub / "team" / "speech"
    folder.mkdir(parents=True)
    (folder / "last_best_checkpoint").write_text("last.pt\n")
    torch.save({"a": torch.ones(1)}, folder / "last.pt")
    fetched = fetch_checkpoint("hf://team/speech")
    assert (fetched.path / "last.pt").read_bytes() == (folder / "last.pt").read_bytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://team/none", r"hf://team/none cannot be fetched \(Repository Not Found"),
        ("hf://team/flash@v9", r"hf://team/flash@v9 cannot be fetched \(Revision Not Found"),
        ("hf://team/empty", rf"hf://team/empty@{COMMIT} has no weights, wanted model.safetensors, "),
        ("hf://team/flash/none.pt", rf"hf://team/flash@{COMMIT} has no weights, wanted none.pt"),
    ],
)
def test_what_is_not_there_is_one_line(hub: Path, name: str, message: str) -> None:
    save_model(hub / "team" / "flash")
    (hub / "team" / "empty").mkdir()
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hf://", "hf://flash", "hf://team/flash@", "hf://team/fla sh", "hf://../flash"])
def test_what_is_no_name_is_refused_before_anything_is_asked(name: str) -> None:
    assert is_on_hub(name)
    with pytest.raises(ConfigError, match=r"names no checkpoint of the Hub; write hf://ORG/NAME"):
        fetch_checkpoint(name)


@pytest.mark.parametrize(
    "name", ["https://huggingface.co/team/flash", "http:/hf.co/team/flash", "HF://team/flash", "hf:team/flash"]
)
def test_what_is_meant_is_said(name: str) -> None:
    with pytest.raises(ConfigError, match=r"names no checkpoint of the Hub; .* \(did you mean hf://team/flash\?\)$"):
        load_checkpoint(name)


def test_paths_are_not_names_of_the_hub() -> None:
    for path in ("models/hf", Path("hf"), "./hf:/x"):
        assert not is_on_hub(path)
