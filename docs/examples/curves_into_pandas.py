"""Read a run's curves into pandas, also while the run is going on.

python docs/examples/curves_into_pandas.py runs/from-python
"""

import sys

import pandas

import adrpo_scale


def main(folder):
    run = adrpo_scale.open_run(folder)
    curves = pandas.DataFrame(run.metrics()).set_index("iteration")
    measured = pandas.DataFrame(run.evaluations())
    evaluations = measured.pivot(index="iteration", columns=["split", "metric"], values="value")
    print(run.config.algorithm.name, "of", len(run.starts()), "starts")
    print(curves[["reward", "divergence", "seconds"]].tail())
    print(evaluations["train"].tail())
    return curves, evaluations


if __name__ == "__main__":
    main(sys.argv[1])
