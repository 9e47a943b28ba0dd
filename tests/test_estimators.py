"""Estimators against theory: unbiased, of the known variance, with an error that falls in the known order of epsilon.

Losses are computed in float64 from known functions, at points written out through the noise.
"""

import functools
import math

import pytest
import torch

from covering import grid
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError, NonFiniteError
from zofo.estimators import ESTIMATORS, Estimate, OneSided, TwoSided
from zofo.noise import NOISES

D = 6
N, MANY = 5_000, 20_000  # estimates, in `make test` and in `make soak`
SHAPE = (2, 3)  # theta is one matrix, so that low-rank noise is of low rank
EXAMPLES = 4
EPSILONS = (1.0, 0.1, 0.01)
ORDER = {"one-sided": 1}
"""How the error along a fixed direction falls with epsilon; 2 unless said otherwise."""

SHARED, PER_EXAMPLE, PER_PAIR = 0, 1, 2  # how many examples share a direction; 0: all
LINEAR_ONES = [name for name in ESTIMATORS if ESTIMATORS[name]().linear]
SHARING = {SHARED: "shared", PER_EXAMPLE: "per-example", PER_PAIR: "per-group(2)"}
every_estimator = pytest.mark.parametrize("name", LINEAR_ONES)
every_sharing = pytest.mark.parametrize("group", SHARING, ids=SHARING.values())


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


def gradient_of(function, group=SHARED):
    """The true gradient at theta: of the mean over the examples, or of each group of them, a row each."""
    each = torch.stack([GRADIENTS[function](e) for e in range(EXAMPLES)])
    return each.unflatten(0, (-1, group)).mean(1) if group else each.mean(0)


def own_gradients(function, group, count):
    """What the estimate along each of `count` keys has to be on average: [count, D]."""
    each = gradient_of(function, group).view(-1, D)
    return each.repeat(-(-count // len(each)), 1)[:count]


def layout(keys, group, n=1):
    """The directions of one step that uses all of `keys`, and its batch size.

    Shared: each key is a direction. Otherwise there are n directions, and `group` examples in turn have the same key.
    """
    if not group:
        return keys, EXAMPLES
    each = len(keys) // n
    return [[key for key in keys[i * each : (i + 1) * each] for _ in range(group)] for i in range(n)], each * group


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
    if all(isinstance(point, Displacement) for point in points):
        x = THETA + write_out(points, z, keys)
        return torch.stack([function(x, e) for e in kinds.tolist()], dim=1)
    each = [[point] if isinstance(point, Displacement) else point for point in points]
    return torch.stack([function(THETA + write_out(point, z, keys), kinds) for point in each])


@functools.cache
def run(name, epsilon, function, noise="gaussian", count=N, group=SHARED, n=1):
    """Steps of 200 keys, through ask and tell: the mean of their gradients, and the slope along each key."""
    estimator, z = ESTIMATORS[name](epsilon=epsilon), directions(noise, max(count, N))[:count]
    gradients, slopes = [], []
    for start in range(0, count, 200):
        keys, own = keys_of(count)[start : start + 200], z[start : start + 200]
        asked, batch = layout(keys, group, n)
        estimate = estimator.tell(asked, losses_at(function, estimator.ask(asked), own, keys, batch))
        assert list(estimate.gradient) == list(estimate.projected_gradients) == keys
        gradients.append(write_out([estimate.gradient], own, keys)[0])
        slopes.extend(estimate.projected_gradients.values())
    return torch.stack(gradients).mean(0), torch.tensor(slopes, dtype=torch.float64)


def alone(name, epsilon, function, noise="gaussian", group=SHARED, n=1, count=N):
    """What each of so many keys alone would estimate, a row each."""
    return run(name, epsilon, function, noise, count, group, n)[1].unsqueeze(1) * directions(noise, count)


def check_unbiased(name, function, epsilon, noise, group=SHARED, n=1, count=N):
    truth, mean = gradient_of(function), run(name, epsilon, function, noise, count, group, n)[0]
    each = alone(name, epsilon, function, noise, group, n, count)
    error = (each - own_gradients(function, group, count)).std(dim=0) / count**0.5
    assert (4 * error).max() < 0.25 * truth.norm()  # so that half or twice the gradient would fail
    assert ((mean - truth).abs() <= 4 * error).all()


@pytest.mark.promise(3)
@pytest.mark.parametrize(("name", "epsilon", "group"), grid(LINEAR_ONES, EPSILONS, SHARING))
def test_the_mean_of_5000_estimates_on_a_quadratic_is_the_gradient_within_4_standard_errors(name, epsilon, group):
    check_unbiased(name, quadratic, epsilon, "gaussian", group)


@pytest.mark.promise(3)
@pytest.mark.soak
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("epsilon", EPSILONS)
@every_estimator
@every_sharing
def test_the_mean_of_20000_estimates_on_a_quadratic_is_the_gradient_within_4_standard_errors(
    name, epsilon, noise, group
):
    check_unbiased(name, quadratic, epsilon, noise, group, count=MANY)


@every_estimator
@pytest.mark.parametrize("group", [PER_EXAMPLE, PER_PAIR], ids=["per-example", "per-group(2)"])
def test_two_directions_for_each_example_or_group_give_the_gradient_too(name, group):
    check_unbiased(name, quadratic, 0.1, "gaussian", group, n=2)


@pytest.mark.promise(3)
@pytest.mark.parametrize(
    ("name", "noise", "group"), grid(LINEAR_ONES, [noise for noise in NOISES if noise != "gaussian"], SHARING)
)
def test_every_noise_gives_unbiased_estimates(name, noise, group):
    check_unbiased(name, quadratic, 0.1, noise, group)


@pytest.mark.parametrize("epsilon", EPSILONS)
@every_sharing
def test_one_sided_estimates_of_a_linear_function_are_exact_along_each_direction_and_unbiased(epsilon, group):
    each = alone("one-sided", epsilon, linear, group=group)
    z, g = directions("gaussian"), own_gradients(linear, group, N)
    torch.testing.assert_close(each, (z * g).sum(1, keepdim=True) * z, rtol=1e-9, atol=1e-9)
    check_unbiased("one-sided", linear, epsilon, "gaussian", group)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_one_sided_slopes_of_a_quadratic_are_off_by_half_epsilon_z_a_z_and_two_sided_ones_are_exact(epsilon):
    z, g, a = directions("gaussian"), gradient_of(quadratic), HESSIANS.mean(0)
    curvature = torch.einsum("ni,ij,nj->n", z, a, z)
    for name, offset in (("one-sided", 0.5 * epsilon * curvature), ("two-sided", 0 * curvature)):
        slopes = run(name, epsilon, quadratic)[1]
        torch.testing.assert_close(slopes, z @ g + offset, rtol=1e-9, atol=1e-9)
    bias, error = 0.5 * epsilon * curvature.mean(), 0.5 * epsilon * curvature.std() / N**0.5
    assert abs(bias - 0.5 * epsilon * a.trace()) < 4 * error
    assert bias > 10 * error


# With z ~ N(0, I) and h homogeneous of degree k, E[h(z) |z|^2] = (d + k) E[h(z)]. Hence E|(g.z) z|^2 = (d + 2) |g|^2,
# and the one-sided remainder adds eps^2/4 (d + 4) (tr(A)^2 + 2 tr(A^2)); mixed terms are odd and vanish.


def variance(residual):
    """The trace of the covariance, about a known mean."""
    return residual.square().sum(dim=1).mean().item()


@pytest.mark.promise(3)
@pytest.mark.parametrize("function", [linear, quadratic])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_variance_of_two_sided_estimates_is_d_plus_1_times_the_squared_gradient(epsilon, function):
    g = gradient_of(function)
    measured = variance(alone("two-sided", epsilon, function) - g)
    assert measured == pytest.approx((D + 1) * g.dot(g).item(), rel=0.1)


@pytest.mark.promise(3)
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_variance_of_one_sided_estimates_has_a_term_of_the_curvature(epsilon):
    g, a = gradient_of(quadratic), HESSIANS.mean(0)
    remainder = epsilon**2 / 4 * (D + 4) * (a.trace() ** 2 + 2 * (a @ a).trace()).item()
    measured = variance(alone("one-sided", epsilon, quadratic) - g)
    assert measured == pytest.approx((D + 1) * g.dot(g).item() + remainder, rel=0.1)
    g = gradient_of(linear)
    assert variance(alone("one-sided", epsilon, linear) - g) == pytest.approx((D + 1) * g.dot(g).item(), rel=0.1)


def test_rademacher_directions_have_two_parts_less_variance():
    g = gradient_of(linear)
    measured = variance(alone("two-sided", 0.1, linear, "rademacher") - g)
    assert measured == pytest.approx((D - 1) * g.dot(g).item(), rel=0.1)


def in_steps(name, function, size, steps, group=SHARED, n=1):
    """The gradients of `steps` separate steps of `size` keys each, through ask and tell, a row each."""
    estimator = ESTIMATORS[name](epsilon=0.1)
    keys, z = keys_of(size * steps), directions("gaussian", max(N, size * steps))
    rows = []
    for start in range(0, size * steps, size):
        mine, own = keys[start : start + size], z[start : start + size]
        asked, batch = layout(mine, group, n)
        estimate = estimator.tell(asked, losses_at(function, estimator.ask(asked), own, mine, batch))
        rows.append(torch.tensor([estimate.gradient[key] for key in mine], dtype=torch.float64) @ own)
    return torch.stack(rows)


# The step has n directions for each of m groups of equal size (m = 1: all examples share them); its estimate is the
# mean over all n m keys, which are independent, of (slope of the group's mean loss) z. Each of those has the variance
# above, for the gradient g_j and the curvature A_j of its own group. With r_j for the one-sided remainder the total is
#     1 / (n m**2) sum over j of [(d + 1) |g_j|^2 + r_j].
# Linear losses with a direction for each of B examples, n = 1: (d + 1) (|g|^2 + s^2) / B, where s^2 is the mean of
# |g_i - g|^2, against (d + 1) |g|^2 with a shared one.


def variance_in_theory(name, function, group, n):
    g = gradient_of(function, group).view(-1, D)
    a = HESSIANS.unflatten(0, (-1, group or EXAMPLES)).mean(1)
    traces = a.diagonal(dim1=1, dim2=2).sum(1).square() + 2 * a.square().sum((1, 2))
    curved = 0.1**2 / 4 * (D + 4) * traces if (name, function) == ("one-sided", quadratic) else torch.zeros(len(a))
    return ((D + 1) * g.square().sum(1) + curved).sum().item() / (n * len(g) ** 2)


def check_steps(name, group, n, steps=None):
    keys_a_step = n * (EXAMPLES // group if group else 1)
    steps = steps or N // max(4, keys_a_step)
    estimates = in_steps(name, quadratic, keys_a_step, steps, group, n)
    g = gradient_of(quadratic)
    error = estimates.std(dim=0) / steps**0.5
    assert (4 * error).max() < 0.25 * g.norm()
    assert ((estimates.mean(dim=0) - g).abs() <= 4 * error).all()
    assert variance(estimates - g) == pytest.approx(variance_in_theory(name, quadratic, group, n), rel=0.1)


every_step = pytest.mark.parametrize(
    ("group", "n"),
    [
        pytest.param(SHARED, 4, id="shared x 4"),
        pytest.param(PER_EXAMPLE, 1, id="per-example", marks=pytest.mark.soak),
        pytest.param(PER_EXAMPLE, 2, id="per-example x 2"),
        pytest.param(PER_PAIR, 1, id="per-group(2)", marks=pytest.mark.soak),
        pytest.param(PER_PAIR, 2, id="per-group(2) x 2", marks=pytest.mark.soak),
    ],
)


@every_estimator
@every_step
def test_steps_of_many_keys_are_unbiased_and_have_the_variance_of_their_mean(name, group, n):
    check_steps(name, group, n)


@pytest.mark.promise(3)
@pytest.mark.soak
@every_estimator
@every_step
def test_20000_steps_of_many_keys_are_unbiased_and_have_the_variance_of_their_mean(name, group, n):
    check_steps(name, group, n, MANY)


@pytest.mark.promise(3)
@every_estimator
@pytest.mark.parametrize("group", [PER_EXAMPLE, PER_PAIR], ids=["per-example", "per-group(2)"])
def test_directions_for_each_example_cut_the_variance_by_the_known_ratio(name, group):
    g, own = gradient_of(linear), gradient_of(linear, group)
    spread = (own - g).square().sum(1).mean()
    theory = ((g.dot(g) + spread) / (len(own) * g.dot(g))).item()
    assert abs(theory - 1) > 0.3  # so that the tolerance tells it from no gain
    shared = variance(alone(name, 0.1, linear) - g)
    apart = variance(in_steps(name, linear, len(own), N // 4, group) - g)
    assert apart / shared == pytest.approx(theory, rel=0.1)


@pytest.mark.promise(3)
@every_estimator
@every_sharing
def test_halving_epsilon_on_a_cubic_cuts_the_error_along_a_fixed_key_in_the_known_order(name, group):
    count = 40
    z = directions("gaussian")[:count]
    g = own_gradients(cubic, group, count)
    errors = []
    for epsilon in (0.02, 0.01):
        slopes = run(name, epsilon, cubic, count=count, group=group)[1]
        errors.append((slopes - (z * g).sum(-1)).abs())
    known = errors[1] > 1e-6  # a direction along which the leading term happens to vanish says nothing
    assert known.sum() > 30
    factor = (errors[0] / errors[1])[known]
    expected = 2.0 ** ORDER.get(name, 2)
    assert ((factor > 0.8 * expected) & (factor < 1.2 * expected)).all()


@every_estimator
@every_sharing
def test_one_key_gives_the_estimate_that_it_has_a_share_of_among_many(name, group):
    estimator, count = ESTIMATORS[name](epsilon=0.1), EXAMPLES // (group or 1)
    keys, z = keys_of(count), directions("gaussian")[:count]
    asked, _ = layout(keys, group)
    losses = losses_at(quadratic, estimator.ask(asked), z, keys)
    together = estimator.tell(asked, losses)
    assert list(together.gradient) == keys
    for number, key in enumerate(keys):
        assert together.gradient[key] == pytest.approx(together.projected_gradients[key] / count, rel=1e-15)
        if group:  # its own examples, alone in a batch
            own = losses[:, number * group : (number + 1) * group]
        else:
            own = losses_at(quadratic, estimator.ask([key]), z[number : number + 1], [key])
        single = estimator.tell([key], own)
        assert single.gradient[key] == single.projected_gradients[key]
        assert single.gradient[key] == pytest.approx(together.projected_gradients[key], rel=1e-15)


@every_estimator
def test_one_group_of_all_examples_is_a_shared_direction_to_the_last_place(name):
    estimator, keys = ESTIMATORS[name](epsilon=0.1), keys_of(2)
    shared = estimator.tell(keys, losses := losses_at(quadratic, estimator.ask(keys), directions("gaussian")[:2], keys))
    grouped = estimator.tell([[key] * EXAMPLES for key in keys], losses)
    for key in keys:
        assert grouped.gradient[key] == pytest.approx(shared.gradient[key], rel=1e-14)
        assert grouped.projected_gradients[key] == pytest.approx(shared.projected_gradients[key], rel=1e-14)
    assert (grouped.loss, grouped.queries, grouped.spread) == (shared.loss, shared.queries, shared.spread)


def test_a_key_that_some_examples_share_counts_by_their_number_wherever_they_stand():
    one, two, both = Key(0, 1), Key(0, 2), Key(0, 3)
    slopes = torch.tensor([[3.0, 9.0, 6.0], [1.0, 2.0, 9.0]])
    losses = torch.stack([slopes, torch.zeros(2, 3)], dim=1).flatten(0, 1)  # +, - of each direction, 2 epsilon = 1
    estimate = TwoSided(0.5).tell([[one, two, one], both], losses)
    assert estimate.projected_gradients == {one: 4.5, two: 9.0, both: 4.0}
    assert dict(estimate.gradient.items()) == pytest.approx({one: 9 / 3 / 2, two: 9 / 3 / 2, both: 4 / 2})


def test_the_points_asked_for_are_those_of_the_papers():
    one, two = Key(0, 1), Key(0, 2)
    assert TwoSided(0.5).ask([one, two]) == [Displacement({k: s}) for k in (one, two) for s in (0.5, -0.5)]
    assert OneSided(0.5).ask([one, two]) == [Displacement(), Displacement({one: 0.5}), Displacement({two: 0.5})]
    plus, minus, shared_plus, shared_minus = TwoSided(0.5).ask([[one, two], one])
    assert list(plus) == [Displacement({one: 0.5}), Displacement({two: 0.5})]
    assert list(minus) == [Displacement({one: -0.5}), Displacement({two: -0.5})]
    assert (shared_plus, shared_minus) == (Displacement({one: 0.5}), Displacement({one: -0.5}))
    theta, first, second = OneSided(0.5).ask([[one, two], [two, two]])
    assert theta == Displacement()
    assert list(first) == [Displacement({one: 0.5}), Displacement({two: 0.5})]
    assert list(second) == [Displacement({two: 0.5}), Displacement({two: 0.5})]


@pytest.mark.parametrize(("name", "points"), [("two-sided", 6), ("one-sided", 4)])
@every_sharing
def test_queries_are_points_times_examples_and_the_loss_is_their_mean(name, points, group):
    estimator = ESTIMATORS[name](epsilon=0.1)
    asked, _ = layout(keys_of(3 * (EXAMPLES // group if group else 1)), group, n=3)
    assert len(estimator.ask(asked)) == points
    losses = seeded(points, EXAMPLES, seed=9)
    estimate = estimator.tell(asked, losses)
    assert estimate.queries == points * EXAMPLES
    assert estimate.loss == pytest.approx(losses.mean().item(), rel=1e-14)


@every_estimator
@every_sharing
def test_losses_are_subtracted_for_each_example_before_they_are_averaged(name, group):
    """Float32 losses of a million with slopes of 1/16: their float32 mean would round the difference away."""
    examples = 1000
    asked, _ = layout(keys_of(examples // group if group else 1), group)
    low = torch.arange(examples, dtype=torch.float32) * 977 + 1
    first, rest = (low + 0.0625, [low]) if name != "one-sided" else (low, [low + 0.0625])
    estimate = ESTIMATORS[name](epsilon=0.5).tell(asked, torch.stack([first, *rest]))
    distance = 0.5 if name == "one-sided" else 1.0
    assert set(estimate.projected_gradients.values()) == {0.0625 / distance}
    assert len(estimate.projected_gradients) == (examples // group if group else 1)


@every_estimator
@pytest.mark.parametrize("asked", [[Key(0, 0)], [[Key(0, 0)]]], ids=["shared", "per-example"])
def test_losses_are_subtracted_in_float64(name, asked):
    high, low = 2.0**24, 0.5  # in float32 their difference is 2**24
    losses = torch.tensor([[low], [high]] if name == "one-sided" else [[high], [low]])
    estimate = ESTIMATORS[name](epsilon=0.5).tell(asked, losses)
    distance = 0.5 if name == "one-sided" else 1.0
    assert list(estimate.projected_gradients.values()) == [(high - low) / distance]


@pytest.mark.promise(9)
@every_estimator
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per-example"])
def test_a_non_finite_loss_anywhere_is_refused_by_naming_step_key_and_example(name, value, shared):
    estimator = ESTIMATORS[name](epsilon=0.5)
    keys = [Key(8, 41, index) for index in range(6)]
    asked = keys[:3] if shared else [keys[:3], keys[3:]]
    points = estimator.ask(asked)
    for point in range(len(points)):
        for example in range(3):
            losses = torch.zeros(len(points), 3)
            losses[point, example] = value
            with pytest.raises(NonFiniteError) as caught:
                estimator.tell(asked, losses)
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
    read = Estimate.from_gradient(gradient)
    assert (read.gradient, read.queries, dict(read.projected_gradients)) == (gradient, 0, {})
    estimate = TwoSided(0.5).tell([Key(0, 1)], torch.tensor([[3.0], [1.0]]))
    other = estimate.with_gradient(5 * estimate.gradient)
    assert other.gradient == Displacement({Key(0, 1): 10.0})
    assert (other.loss, other.queries, other.projected_gradients) == (2.0, 2, estimate.projected_gradients)
    assert (other.spread, read.spread) == (
        pytest.approx(estimate.spread, nan_ok=True),
        pytest.approx(math.nan, nan_ok=True),
    )


# steps over the spread of the slopes


@every_estimator
@every_sharing
def test_the_spread_is_the_standard_deviation_of_the_slopes_of_each_example_along_each_direction(name, group):
    estimator, n = ESTIMATORS[name](epsilon=0.1), 2
    keys = keys_of(n * (EXAMPLES // group if group else 1))
    z = directions("gaussian")[: len(keys)]
    asked, _ = layout(keys, group, n)
    estimate = estimator.tell(asked, losses_at(linear, estimator.ask(asked), z, keys))
    whose = z.repeat_interleave(group or EXAMPLES, 0)  # z of each example, direction by direction
    slopes = (whose * LINEAR.repeat(n, 1)).sum(1)
    mean = slopes.sum() / len(slopes)
    spread = ((slopes - mean).square().sum() / (len(slopes) - 1)).sqrt().item()
    assert estimate.spread == pytest.approx(spread, rel=1e-9)
    steps = estimate.normalized_by_std()
    assert list(steps.gradient) == keys
    for key in keys:
        assert steps.gradient[key] == pytest.approx(estimate.gradient[key] / spread, rel=1e-9)
    assert (steps.loss, steps.queries) == (estimate.loss, estimate.queries)
    assert steps.projected_gradients == estimate.projected_gradients


@every_estimator
@every_sharing
def test_a_step_over_the_spread_does_not_depend_on_the_scale_of_the_losses_or_on_epsilon(name, group):
    count = 2 * (EXAMPLES // group if group else 1)
    keys, z = keys_of(count), directions("gaussian")[:count]
    asked, _ = layout(keys, group, n=2)
    steps = []
    for epsilon, scale, offset in ((0.1, 1.0, 0.0), (0.1, 1000.0, 7.0), (0.4, 1e-4, 0.0)):
        estimator = ESTIMATORS[name](epsilon=epsilon)
        losses = scale * losses_at(linear, estimator.ask(asked), z, keys) + offset
        steps.append(estimator.tell(asked, losses).normalized_by_std().gradient)
    for key in keys:
        assert [step[key] for step in steps] == pytest.approx([steps[0][key]] * 3, rel=1e-9)


@every_estimator
@pytest.mark.parametrize("asked", [[Key(0, 0)], [[Key(0, 0, e) for e in range(33)]]], ids=["shared", "per-example"])
@pytest.mark.parametrize(("high", "low"), [(3.0, 1.0), (1.1, 0.4), (1.0, 1.0)])
def test_slopes_that_are_all_equal_give_no_step_over_their_spread(name, asked, high, low):
    """With 33 slopes of 7/6 their computed mean is not 7/6, and a spread about it not quite 0."""
    points = [high, low] if name == "two-sided" else [low, high]
    estimate = ESTIMATORS[name](epsilon=0.3).tell(asked, torch.tensor(points).unsqueeze(1).repeat(1, 33))
    assert (len(estimate.gradient) > 0) == (high > low)
    assert estimate.normalized_by_std().gradient == Displacement()
    assert estimate.spread == 0


@every_estimator
def test_one_slope_has_no_spread_and_gives_no_step_over_it(name):
    estimate = ESTIMATORS[name](epsilon=0.5).tell([Key(0, 0)], torch.tensor([[3.0], [1.0]]))
    assert math.isnan(estimate.spread)
    assert len(estimate.gradient) == 1
    assert estimate.normalized_by_std().gradient == Displacement()
