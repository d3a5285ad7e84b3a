"""What a linear model reads from synthetic faces, and how fast they are drawn.

    python benchmarks/synthetic_linear.py

Draws 6,000 training pictures and 2,000 of other people, fits ridge regression to one-hot classes
(scikit-learn's RidgeClassifier, the best of several strengths by the validation split) on the grey
pixels, standardised, and prints its accuracy beside that of always naming the most frequent class.
About one minute on one core.
"""

import argparse
import time

import numpy as np
from sklearn.linear_model import RidgeClassifier

from hmtl_jax.data import synthetic

STRENGTHS = (1e2, 1e3, 1e4, 1e5)


def main() -> None:
    """Prints one line for each label."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    start = time.perf_counter()
    train, validation, test = (
        synthetic.render(np.arange(n), split=split, size=arguments.size)
        for split, n in (("train", arguments.train), ("validation", 1000), ("test", 2000))
    )
    speed = (arguments.train + 3000) / (time.perf_counter() - start)
    print(f"drawn at {arguments.size} px: {speed:.0f} images/s in one thread")
    x, v, y = (grey(r["image"]) for r in (train, validation, test))
    mean, deviation = x.mean(0), x.std(0) + 1e-3
    x, v, y = ((pixels - mean) / deviation for pixels in (x, v, y))
    for label in ("expression", "gender", "skin_tone", "fake"):
        model = best(x, train[label], v, validation[label])
        accuracy = model.score(y, test[label])
        constant = (test[label] == np.bincount(train[label]).argmax()).mean()
        print(f"{label}: linear {100 * accuracy:.1f} %, most frequent class {100 * constant:.1f} %")


def grey(images_bhwc: np.ndarray) -> np.ndarray:
    """Luma as float32 [N, pixels] in 0..1."""
    luma = images_bhwc @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    return luma.reshape(len(luma), -1)


def best(x, x_labels, v, v_labels) -> RidgeClassifier:
    """The model whose strength does best on other people."""
    models = [RidgeClassifier(alpha=alpha).fit(x, x_labels) for alpha in STRENGTHS]
    return max(models, key=lambda model: model.score(v, v_labels))


if __name__ == "__main__":
    main()
