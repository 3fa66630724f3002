"""`make bench`: every benchmark, one after the other."""

import sys

from experiments.benchmarks import (
    augmentation,
    bad_numbers,
    compositing,
    copy_loss,
    decoding,
    predicting,
    retrieval,
    seal_documents,
    seal_forging,
    seal_prompts,
    spectra,
    spectrum_data,
    sync_embedding,
    sync_setups,
    sync_step,
    views,
)
from experiments.steps import run_without_options

SEGMENTATION = (compositing, decoding, predicting)
COPIES = (views, copy_loss, retrieval)
SPECTRA = (spectra, spectrum_data)
SYNCHRONISATION = (augmentation, sync_embedding, sync_step, sync_setups)
SEALS = (seal_documents, seal_prompts, seal_forging)
RUNS = (bad_numbers,)


def main() -> None:
    """Run them all."""
    for benchmark in (*SEGMENTATION, *COPIES, *SPECTRA, *SYNCHRONISATION, *SEALS, *RUNS):
        print(f"\n{benchmark.__name__}")
        benchmark.main([])


if __name__ == "__main__":
    sys.exit(run_without_options(main, __doc__))
