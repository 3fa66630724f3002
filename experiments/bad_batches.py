"""Batches that were written down because their step met NaN or infinity, drawn again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from datamodules.base import ProvenanceDataModule, ReadGuard, SampleKey, collate_samples


def draw_batch(config: Path, line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch as the loader gave it, on the CPU, pixels in the type they travel in.

    Args:
        config: The config.yaml of the run.
        line: One of the lines of its bad_numbers.jsonl, parsed.
    """
    section = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]
    # What the run made of `null`, which here would be another run's seed.
    section["init_args"]["seed"] = line["data_seed"]
    parser = ArgumentParser(parser_mode="omegaconf+", exit_on_error=False)
    parser.add_subclass_arguments(ProvenanceDataModule, "data")
    data: ProvenanceDataModule = parser.instantiate_classes(parser.parse_object({"data": section})).data
    data.setup("fit")
    samples = ReadGuard(data.datasets["train"], data.on_unreadable)
    return collate_samples([samples[SampleKey(line["epoch"], index)] for index in line["index"]])
