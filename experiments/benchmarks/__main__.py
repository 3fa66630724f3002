"""`make bench`: every benchmark, one after the other."""

from experiments.benchmarks import (
    compositing,
    copy_loss,
    decoding,
    predicting,
    retrieval,
    spectra,
    spectrum_data,
    views,
)

for benchmark in (compositing, decoding, predicting, views, copy_loss, retrieval, spectra, spectrum_data):
    print(f"\n{benchmark.__name__}")
    benchmark.main([])
