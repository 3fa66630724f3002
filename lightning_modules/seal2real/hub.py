"""Where the files of a diffusion model are: a folder, the hub's cache, or the hub itself."""

import os
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from lightning_modules.functional.plain_json import parse_json, quoted

MOST_LEVELS = 100_000  # published schedules have a thousand; each takes memory
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PATIENCE_S = 2.0  # so that with the imports an error comes within five seconds
_WANTED = ["model_index.json", *(f"{part}/*" for part in PARTS)]
_UNWANTED = ["*.bin", "*.msgpack", "*.onnx", "*.onnx_data", "*.xml", "*non_ema*", "*.ckpt"]


def find_model(source: str) -> Path:
    """Return the folder of a diffusers model, fetched where it is on the hub and not yet here.

    Args:
        source: A local folder in the layout of diffusers, or a hub id such as ``owner/name``.
    """
    folder = Path(source).expanduser()
    if folder.exists():
        return _checked(folder)
    if not _HUB_ID.fullmatch(source):
        raise FileNotFoundError(
            f"no diffusion model at {source}: give model.backbone a folder in diffusers layout "
            f"({', '.join(PARTS)}), a hub id such as owner/name, or tiny"
        )
    return _checked(_from_cache(source) or _from_hub(source))


def weight_variant(folder: Path) -> str | None:
    """Return ``fp16`` where a part has its weights only under that name."""
    plain = [file for file in folder.glob("*.safetensors") if ".fp16." not in file.name]
    plain += [file for file in folder.glob("*.bin") if ".fp16." not in file.name]
    return "fp16" if not plain and any(".fp16." in file.name for file in folder.iterdir()) else None


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """Return the configuration of the scheduler or of another part."""
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    content = _json_object(file)
    levels = content.get("num_train_timesteps", 1)
    if not isinstance(levels, int) or not 0 < levels <= MOST_LEVELS:
        raise ValueError(f"{file} tells of {quoted(levels)} noise levels: copy the model again")
    return content


def _json_object(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(file.read_bytes(), str(file))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}): copy the model again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no JSON object: copy the model again")
    return content


def _checked(folder: Path) -> Path:
    if folder.is_file():
        raise ValueError(
            f"{folder} is a single file: model.backbone takes a folder in diffusers layout; "
            f"StableDiffusionPipeline.from_single_file(...).save_pretrained(...) makes one"
        )
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is no diffusers folder of Stable Diffusion: it has no {', '.join(missing)}; copy the whole model"
        )
    for index in (file for part in PARTS for file in (folder / part).glob("*.index.json")):
        names = _json_object(index).get("weight_map")
        for name in names.values() if isinstance(names, dict) else [None]:
            # The libraries join it to the folder as it is.
            if not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", ".."):
                raise ValueError(f"{index} names a file outside of its folder ({quoted(name)}): copy the model again")
    return folder


def _from_cache(source: str) -> Path | None:
    if not (_cache_folder() / f"models--{source.replace('/', '--')}").is_dir():
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, local_files_only=True, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except LocalEntryNotFoundError:
        return None


def _from_hub(source: str) -> Path:
    failure = _why_unreachable(source)
    if failure is None:
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(source, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
        except Exception as error:  # of the network, the hub or the disk
            failure = type(error).__name__
    raise FileNotFoundError(
        f"{source} is neither in the hub's cache here nor to be had from the hub ({failure}): fetch it where there is "
        f"a network (hf download {source} --local-dir FOLDER) and give model.backbone that folder"
    )


def _cache_folder() -> Path:
    """Return where the hub's library keeps models, by the variables that it reads."""
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    home = Path(os.environ.get("HF_HOME", home))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()


def _why_unreachable(source: str) -> str | None:
    """Ask the hub for the model without its library, whose import and retries alone would take longer than allowed."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "on", "yes"):
        return "HF_HUB_OFFLINE is set"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    request = urllib.request.Request(f"{endpoint}/api/models/{source}", method="HEAD")  # noqa: S310
    answer: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(request, timeout=_PATIENCE_S).close()  # noqa: S310 (the user's own variable)
        except urllib.error.HTTPError:
            answer.append(None)  # it is there, and its library knows more, such as a token
        except OSError as error:
            answer.append(str(getattr(error, "reason", error)))
        else:
            answer.append(None)

    # A thread: resolving a name knows no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return answer[0] if answer else f"no answer in {_PATIENCE_S:g} s"
