"""Estimators against theory: unbiased, of the known variance, with an error that falls in the known order of epsilon.

Losses are computed in float64 from known functions, at points written out through the noise.
"""

import functools

import pytest
import torch

from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError, NonFiniteError
from zofo.estimators import ESTIMATORS, Estimate, OneSided, PerExample, TwoSided
from zofo.noise import NOISES

D, N = 6, 20_000
SHAPE = (2, 3)  # theta is one matrix, so that low-rank noise is of low rank
EXAMPLES = 4
EPSILONS = (1.0, 0.1, 0.01)
ORDER = {"one-sided": 1}
"""How the error along a fixed direction falls with epsilon; 2 unless said otherwise."""

every_estimator = pytest.mark.parametrize("name", ESTIMATORS)


def seeded(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


THETA = seeded(D, seed=0)
LINEAR = seeded(EXAMPLES, D, seed=1) + torch.tensor([1.0, -1.0, 0.5, 0.0, 0.3, 2.0], dtype=torch.float64)
HESSIANS = (lambda a: (a + a.mT) / 4 + 0.5 * torch.eye(D, dtype=torch.float64))(seeded(EXAMPLES, D, D, seed=2))
CUBIC = 0.3 * seeded(EXAMPLES, D, seed=3)


@functools.cache
def keys_of(count):
    return [Key(2024, step) for step in range(count)]


@functools.cache
def directions(noise, count=N):
    """z for each of the first `count` keys, one a row, float64."""
    part = NOISES[noise]()
    return torch.stack([part.whole(key, "w", SHAPE).flatten() for key in keys_of(count)]).double()


def linear(x, e):
    return (x * LINEAR[e]).sum(-1)


def quadratic(x, e):
    return linear(x, e) + 0.5 * torch.einsum("...i,...ij,...j->...", x, HESSIANS[e], x)


def cubic(x, e):
    return quadratic(x, e) + (CUBIC[e] * x**3).sum(-1)


GRADIENTS = {
    linear: lambda e: LINEAR[e],
    quadratic: lambda e: LINEAR[e] + HESSIANS[e] @ THETA,
    cubic: lambda e: LINEAR[e] + HESSIANS[e] @ THETA + 3 * CUBIC[e] * THETA**2,
}


def gradient_of(function, per_example=False, batch=EXAMPLES):
    """The true gradient at theta: of each example of the batch, or of their mean."""
    each = torch.stack([GRADIENTS[function](e % EXAMPLES) for e in range(EXAMPLES)])
    return each.repeat(batch // EXAMPLES, 1) if per_example else each.mean(0)


def write_out(points, z, keys):
    """Displacements as rows of float64, z holding the direction of each key."""
    row = {key: number for number, key in enumerate(keys)}
    terms = [(number, row[key], c) for number, point in enumerate(points) for key, c in point.items()]
    out = torch.zeros(len(points), D, dtype=torch.float64)
    if terms:
        at, which, c = zip(*terms, strict=True)
        out.index_add_(0, torch.tensor(at), torch.tensor(c, dtype=torch.float64).unsqueeze(1) * z[list(which)])
    return out


def losses_at(function, points, z, keys, batch=EXAMPLES):
    """What an evaluator would answer, exactly: [points, examples]."""
    kinds = torch.arange(batch) % EXAMPLES
    if isinstance(points[0], Displacement):
        x = THETA + write_out(points, z, keys)
        return torch.stack([function(x, e) for e in kinds.tolist()], dim=1)
    return torch.stack([function(THETA + write_out(point, z, keys), kinds) for point in points])


@functools.cache
def run(name, epsilon, function, noise="gaussian", count=N):
    """One `ask` and `tell` with `count` keys: the estimate, and what each key alone would estimate, a row each."""
    estimator = ESTIMATORS[name](epsilon=epsilon)
    keys, z = keys_of(count), directions(noise, max(count, N))[:count]
    batch = count if estimator.per_example else EXAMPLES
    estimate = estimator.tell(keys, losses_at(function, estimator.ask(keys), z, keys, batch))
    slopes = torch.tensor([estimate.projected_gradients[key] for key in keys], dtype=torch.float64)
    return estimate, slopes.unsqueeze(1) * z


def check_unbiased(name, function, epsilon, noise):
    estimate, each = run(name, epsilon, function, noise)
    truth = gradient_of(function)
    residual = each - gradient_of(function, ESTIMATORS[name].per_example, N)
    error = residual.std(dim=0) / N**0.5
    mean = write_out([estimate.gradient], directions(noise), keys_of(N))[0]
    assert (4 * error).max() < 0.25 * truth.norm()  # so that half or twice the gradient would fail
    assert ((mean - truth).abs() <= 4 * error).all()


@pytest.mark.parametrize("epsilon", EPSILONS)
@every_estimator
def test_the_mean_of_20000_estimates_on_a_quadratic_is_the_gradient_within_4_standard_errors(name, epsilon):
    check_unbiased(name, quadratic, epsilon, "gaussian")


@pytest.mark.parametrize("noise", [noise for noise in NOISES if noise != "gaussian"])
@every_estimator
def test_every_noise_gives_unbiased_estimates(name, noise):
    check_unbiased(name, quadratic, 0.1, noise)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_one_sided_estimates_of_a_linear_function_are_exact_along_each_direction_and_unbiased(epsilon):
    _, each = run("one-sided", epsilon, linear)
    z, g = directions("gaussian"), gradient_of(linear)
    torch.testing.assert_close(each, (z @ g).unsqueeze(1) * z, rtol=1e-9, atol=1e-9)
    check_unbiased("one-sided", linear, epsilon, "gaussian")


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_one_sided_slopes_of_a_quadratic_are_off_by_half_epsilon_z_a_z_and_two_sided_ones_are_exact(epsilon):
    z, g, a = directions("gaussian"), gradient_of(quadratic), HESSIANS.mean(0)
    curvature = torch.einsum("ni,ij,nj->n", z, a, z)
    for name, offset in (("one-sided", 0.5 * epsilon * curvature), ("two-sided", 0 * curvature)):
        estimate, _ = run(name, epsilon, quadratic)
        slopes = torch.tensor([estimate.projected_gradients[key] for key in keys_of(N)], dtype=torch.float64)
        torch.testing.assert_close(slopes, z @ g + offset, rtol=1e-9, atol=1e-9)
    bias, error = 0.5 * epsilon * curvature.mean(), 0.5 * epsilon * curvature.std() / N**0.5
    assert abs(bias - 0.5 * epsilon * a.trace()) < 4 * error
    assert bias > 10 * error


# With z ~ N(0, I) and h homogeneous of degree k, E[h(z) |z|^2] = (d + k) E[h(z)]. Hence E|(g.z) z|^2 = (d + 2) |g|^2,
# and the one-sided remainder adds eps^2/4 (d + 4) (tr(A)^2 + 2 tr(A^2)); mixed terms are odd and vanish.


def variance(residual):
    """The trace of the covariance, about a known mean."""
    return residual.square().sum(dim=1).mean().item()


@pytest.mark.parametrize("function", [linear, quadratic])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_variance_of_two_sided_estimates_is_d_plus_1_times_the_squared_gradient(epsilon, function):
    g = gradient_of(function)
    measured = variance(run("two-sided", epsilon, function)[1] - g)
    assert measured == pytest.approx((D + 1) * g.dot(g).item(), rel=0.1)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_variance_of_one_sided_estimates_has_a_term_of_the_curvature(epsilon):
    g, a = gradient_of(quadratic), HESSIANS.mean(0)
    remainder = epsilon**2 / 4 * (D + 4) * (a.trace() ** 2 + 2 * (a @ a).trace()).item()
    measured = variance(run("one-sided", epsilon, quadratic)[1] - g)
    assert measured == pytest.approx((D + 1) * g.dot(g).item() + remainder, rel=0.1)
    g = gradient_of(linear)
    assert variance(run("one-sided", epsilon, linear)[1] - g) == pytest.approx((D + 1) * g.dot(g).item(), rel=0.1)


def test_rademacher_directions_have_two_parts_less_variance():
    g = gradient_of(linear)
    measured = variance(run("two-sided", 0.1, linear, "rademacher")[1] - g)
    assert measured == pytest.approx((D - 1) * g.dot(g).item(), rel=0.1)


def in_groups(estimator, function, size, groups, batch=EXAMPLES):
    """`groups` separate steps of `size` keys each, through ask and tell: their gradients, a row each."""
    keys, z = keys_of(size * groups), directions("gaussian", max(N, size * groups))
    rows = []
    for start in range(0, size * groups, size):
        mine, own = keys[start : start + size], z[start : start + size]
        estimate = estimator.tell(mine, losses_at(function, estimator.ask(mine), own, mine, batch))
        rows.append(torch.tensor([estimate.gradient[key] for key in mine], dtype=torch.float64) @ own)
    return torch.stack(rows)


def check_mean_of_directions(name, size, groups):
    estimator = ESTIMATORS[name](epsilon=0.1)
    g = gradient_of(quadratic)
    batch = size if estimator.per_example else EXAMPLES
    estimates = in_groups(estimator, quadratic, size, groups, batch)
    error = estimates.std(dim=0) / groups**0.5
    assert ((estimates.mean(dim=0) - g).abs() <= 4 * error).all()
    squared = gradient_of(quadratic, estimator.per_example).square().sum(-1).mean().item()
    extra = 0.01 / 4 * (D + 4) * (HESSIANS.mean(0).trace() ** 2 + 2 * HESSIANS.mean(0).square().sum()).item()
    theory = ((D + 1) * squared + (extra if name == "one-sided" else 0)) / size
    assert variance(estimates - g) == pytest.approx(theory, rel=0.1)


@every_estimator
def test_the_mean_of_4_directions_is_unbiased_and_has_a_quarter_of_the_variance(name):
    check_mean_of_directions(name, 4, N // 4)


@pytest.mark.soak
@every_estimator
def test_20000_means_of_4_directions_are_unbiased_and_have_a_quarter_of_the_variance(name):
    check_mean_of_directions(name, 4, N)


@every_estimator
def test_halving_epsilon_on_a_cubic_cuts_the_error_along_a_fixed_key_in_the_known_order(name):
    count = 40
    z = directions("gaussian")[:count]
    g = gradient_of(cubic, ESTIMATORS[name].per_example, count)
    errors = []
    for epsilon in (0.02, 0.01):
        estimate, _ = run(name, epsilon, cubic, count=count)
        slopes = torch.tensor([estimate.projected_gradients[key] for key in keys_of(count)], dtype=torch.float64)
        errors.append((slopes - (z * g).sum(-1)).abs())
    known = errors[1] > 1e-6  # a direction along which the leading term happens to vanish says nothing
    assert known.sum() > 30
    factor = (errors[0] / errors[1])[known]
    expected = 2.0 ** ORDER.get(name, 2)
    assert ((factor > 0.8 * expected) & (factor < 1.2 * expected)).all()


@every_estimator
def test_one_key_gives_the_estimate_that_it_has_a_share_of_among_many(name):
    estimator, count = ESTIMATORS[name](epsilon=0.1), EXAMPLES
    keys, z = keys_of(count), directions("gaussian")[:count]
    together, _ = run(name, 0.1, quadratic, count=count)
    assert list(together.gradient) == keys
    for number, key in enumerate(keys):
        assert together.gradient[key] == pytest.approx(together.projected_gradients[key] / count, rel=1e-15)
        if not estimator.per_example:
            own = z[number : number + 1]
            alone = estimator.tell([key], losses_at(quadratic, estimator.ask([key]), own, [key]))
            assert alone.gradient[key] == alone.projected_gradients[key] == together.projected_gradients[key]


def test_the_points_asked_for_are_those_of_the_papers():
    one, two = Key(0, 1), Key(0, 2)
    assert TwoSided(0.5).ask([one, two]) == [Displacement({k: s}) for k in (one, two) for s in (0.5, -0.5)]
    assert OneSided(0.5).ask([one, two]) == [Displacement(), Displacement({one: 0.5}), Displacement({two: 0.5})]
    plus, minus = PerExample(0.5).ask([one, two])
    assert list(plus) == [Displacement({one: 0.5}), Displacement({two: 0.5})]
    assert list(minus) == [Displacement({one: -0.5}), Displacement({two: -0.5})]


@pytest.mark.parametrize(("name", "points"), [("two-sided", 6), ("one-sided", 4), ("per-example", 2)])
def test_queries_are_points_times_examples_and_the_loss_is_their_mean(name, points):
    estimator, keys = ESTIMATORS[name](epsilon=0.1), keys_of(3)
    assert len(estimator.ask(keys)) == points
    losses = seeded(points, 3, seed=9)
    estimate = estimator.tell(keys, losses)
    assert estimate.queries == points * 3
    assert estimate.loss == pytest.approx(losses.mean().item(), rel=1e-14)


@every_estimator
def test_losses_are_subtracted_for_each_example_before_they_are_averaged(name):
    """Float32 losses of a million with slopes of 1/16: their float32 mean would round the difference away."""
    estimator, examples = ESTIMATORS[name](epsilon=0.5), 1000
    keys = keys_of(examples if estimator.per_example else 1)
    low = torch.arange(examples, dtype=torch.float32) * 977 + 1
    first, rest = (low + 0.0625, [low]) if name != "one-sided" else (low, [low + 0.0625])
    estimate = estimator.tell(keys, torch.stack([first, *rest]))
    distance = 0.5 if name == "one-sided" else 1.0
    assert set(estimate.projected_gradients.values()) == {0.0625 / distance}


@every_estimator
def test_losses_are_subtracted_in_float64(name):
    high, low = 2.0**24, 0.5  # in float32 their difference is 2**24
    losses = torch.tensor([[low], [high]] if name == "one-sided" else [[high], [low]])
    estimate = ESTIMATORS[name](epsilon=0.5).tell(keys_of(1), losses)
    distance = 0.5 if name == "one-sided" else 1.0
    assert list(estimate.projected_gradients.values()) == [(high - low) / distance]


@every_estimator
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_loss_anywhere_is_refused_by_naming_step_key_and_example(name, value):
    estimator = ESTIMATORS[name](epsilon=0.5)
    keys = [Key(8, 41, index) for index in range(3)]
    points = estimator.ask(keys)
    for point in range(len(points)):
        for example in range(3):
            losses = torch.zeros(len(points), 3)
            losses[point, example] = value
            with pytest.raises(NonFiniteError) as caught:
                estimator.tell(keys, losses)
            where = points[point] if isinstance(points[point], Displacement) else points[point][example]
            named = " + ".join(f"{c:+g} * {key}" for key, c in where.items()) or "theta itself"
            assert caught.value.message.startswith(f"step 41: non-finite loss {value} of example {example} at {named};")


@every_estimator
@pytest.mark.parametrize("epsilon", [0.0, -1e-3, float("nan")])
def test_an_epsilon_that_is_not_above_zero_is_refused(name, epsilon):
    with pytest.raises(ConfigError, match=f"estimator.epsilon is {epsilon}"):
        ESTIMATORS[name](epsilon=epsilon)


def test_an_estimate_read_from_a_log_and_a_sum_of_gradients_keep_what_they_should():
    gradient = Displacement({Key(0, 1): 2.0})
    read = Estimate.of(gradient)
    assert (read.gradient, read.queries, dict(read.projected_gradients)) == (gradient, 0, {})
    estimate = TwoSided(0.5).tell([Key(0, 1)], torch.tensor([[3.0], [1.0]]))
    other = estimate.with_gradient(5 * estimate.gradient)
    assert other.gradient == Displacement({Key(0, 1): 10.0})
    assert (other.loss, other.queries, other.projected_gradients) == (2.0, 2, estimate.projected_gradients)
