"""`make bench`: every benchmark, one after the other."""

from experiments.benchmarks import compositing, decoding, predicting

for benchmark in (compositing, decoding, predicting):
    print(f"\n{benchmark.__name__}")
    benchmark.main([])
