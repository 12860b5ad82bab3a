"""Makes von_mises_fisher_values.csv, with 50 digits: needs mpmath, which the tests do not.

python tests/measures/von_mises_fisher_values.py

An independent route: moments of the cosine w = tanh y under `exp(kappa w) (1 - w^2)^((d-3)/2)`, by
the trapezoidal rule, which on this analytic integrand has converged. (Where mpmath's hyp0f1
converges too, for 117 of these d and kappa, the two agree to 4e-22.)
"""

from pathlib import Path

DIMENSIONS = (2, 3, 4, 5, 10, 30, 100, 130, 1000, 2000, 3000, 10**4, 10**5, 10**7, 10**8)
RELATIVE = (1e-6, 1e-4, 1e-2, 0.1, 0.5, 1.0, 3.0, 10.0, 100.0, 1e4)


def moments(mp, d, kappa):
    """`(log of the integral, E[1 - w])`."""

    def exponent(y):
        return kappa * mp.tanh(y) - (d - 1) * mp.log(mp.cosh(y))

    peak = mp.atanh(2 * kappa / (d - 1 + mp.sqrt(mp.mpf(d - 1) ** 2 + 4 * kappa**2)))
    w = mp.tanh(peak)
    width = 1 / mp.sqrt((1 - w * w) * (2 * kappa * w + d - 1))
    spacing, top = min(width / 3, mp.mpf(1) / 16), exponent(peak)
    total = far = mp.mpf(0)
    for sign in (1, -1):
        index = (1 - sign) // 2
        while (height := exponent(y := peak + sign * index * spacing) - top) > -115:
            total += mp.exp(height)
            far += mp.exp(height) * 2 / (mp.exp(2 * y) + 1)
            index += 1
    return top + mp.log(total * spacing), far / total


def main():
    import mpmath as mp

    mp.mp.dps = 50
    rows = []
    for d in DIMENSIONS:
        uniform, _ = moments(mp, d, mp.mpf(0))
        for relative in RELATIVE:
            kappa = float(relative * d)
            value, far = moments(mp, d, mp.mpf(kappa))
            numbers = (mp.nstr(x, 20) for x in (value - uniform, 1 - far, far))
            rows.append(f"{d},{kappa!r},{','.join(numbers)}\n")
    head = "# d, kappa, log 0F1(; d/2; kappa^2/4), A_d(kappa), 1 - A_d(kappa)\n"
    Path(__file__).with_suffix(".csv").write_text(head + "".join(rows))


if __name__ == "__main__":
    main()
