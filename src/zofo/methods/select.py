"""Selection: keep the best of many random displacements. The control for every other use of a population.

The result is one displacement, kept only if it passes a gate on rows that were not used for the selection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from zofo.backbone import Update
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError
from zofo.estimators import Estimate
from zofo.evaluators import EVALUATORS, Evaluator, LossRequest
from zofo.evaluators.counts import counting_forwards
from zofo.methods.base import METHODS, StepLog, TrainingContext, unscheduled
from zofo.methods.es import PopulationMethodConfig
from zofo.methods.mezo import ForwardOnly
from zofo.methods.vote import Vote, save_members, winner
from zofo.noise import permutation
from zofo.objectives import drawing
from zofo.rules import RULES
from zofo.state_dict import StateDict

Member = tuple[int, int]
"""A member by the step that asked for it, and its place among the points of that step."""


class SelectConfig(PopulationMethodConfig):
    """Configuration of `select`. `lr` is the length of the kept displacement; by default sigma, that of a member."""

    lr_per_sigma, lr_is_length, one_rate = 1.0, True, False

    name: Literal["select"] = "select"
    """Which method."""
    keep: int = Field(1, ge=1)
    """K: number of members to keep, as one displacement weighted by their scores; 1 is "best of N"."""
    gate_examples: int = Field(64, ge=0)
    """Number of training rows, separate from those that members are scored on, on which the result must be better than
    the unchanged model, or nothing moves; 0 skips this gate."""
    vote: bool = False
    """Keep the best `keep` members separately, and let them vote: the most frequent answer wins; ties go to that of the
    best member. Use it for scores of answers, with an odd `keep`."""

    @model_validator(mode="after")
    def _can_vote(self) -> SelectConfig:
        if self.vote and self.keep < 2:
            raise ConfigError("method.vote lets members vote, and method.keep=1 keeps one", "set method.keep=5")
        if self.vote and self.adapter is not None:
            raise ConfigError("method.vote needs members of the model's own weights", "leave method.adapter out")
        if self.vote and EVALUATORS[self.evaluator.name].writes_points:
            raise ConfigError(
                f"method.vote asks members again and again, and method.evaluator={self.evaluator.name} would leave a "
                "rounding in the weights each time, which no trajectory holds",
                "set method.noise=low-rank and method.evaluator=in-forward, or method.evaluator=from-copy",
            )
        return self

    def check_steps(self, steps: int) -> None:
        members = steps * self.population
        if self.keep > members:
            raise ConfigError(
                f"method.keep={self.keep} keeps more than the {members} members that "
                + ("1 step scores" if steps == 1 else f"{steps} steps score"),
                f"set method.keep={members} or less, or more training.steps",
            )

    @property
    def least_queries(self) -> int:
        return self.population * self.batch_size + self.gate_points * self.gate_examples

    @property
    def gate_points(self) -> int:
        """The number of points at which the gate evaluates each row: without and with the displacement."""
        return 1 + (self.keep if self.vote else 1)


@METHODS.register("select")
class Select(ForwardOnly):
    """theta <- theta + lr sum over the best K members of w_i x_i / sigma, once, in the last step.

    Each step evaluates N new members theta + x_i, with x_i = +-sigma z_i, on the same `batch_size` rows, and moves
    nothing: S steps choose among S N members. With scores u of all losses by `estimator.scores`, w_i = max(-u_i, 0),
    divided by their sum. With z-scores that is how far a member is better than the mean. After the last step, the
    losses with and without the displacement are computed on `gate_examples` other rows, and theta moves only if the
    loss is lower with it. Members with a non-finite mean loss are ignored, and nothing is kept if a loss of the gate is
    not finite. With K = 1 and lr = sigma the model becomes the best member. The result is K keys and numbers.

    With `vote`, nothing moves: K members theta + x_i are kept, and evaluation runs all of them in one batch and takes
    the majority answer. The gate then compares its score with the model's own.

    It takes as many queries as `es` with the same number of steps, and two per row of the gate. It accepts a
    differentiable loss as well as a score.

    Raises:
        NonFiniteError: (from a step) no member has a finite mean loss. ConfigError: too few training rows, a rule whose
            update is not a displacement, or a learning-rate schedule.
    """

    Config = SelectConfig
    paper = "the control: best of N random displacements (as in RandOpt), or their mean weighted by score"
    needs_all_steps = True  # the last of which moves

    def __init__(self, config: SelectConfig, context: TrainingContext) -> None:
        super().__init__(config, context)
        self._config: SelectConfig = config
        _check_rule(config)
        if config.vote and (context.rewards is None or context.answers is None):
            raise ConfigError(
                f"method.vote counts answers, and the objective {context.objective_name!r} is a loss",
                "set training.objective=accuracy, or give a reward; or leave method.vote out",
            )
        self._context, self._vote = context, list[Member]()
        rows, size, gate = len(context.examples), config.batch_size, config.gate_examples
        if size + gate > rows:
            raise ConfigError(
                f"method=select scores members on {size} rows and asks its gate of {gate} others, but there are {rows} "
                "training rows",
                "lower method.gate_examples or method.batch_size",
            )
        chosen = [context.examples[i] for i in permutation(Key(context.seed, 0), "select", rows)[: size + gate]]
        rest = chosen[size:] if context.length is None else sorted(chosen[size:], key=context.length)
        self._asked = context.collate(chosen[:size])
        self._gate = [context.collate(rest[start : start + size]) for start in range(0, gate, size)]
        self._named = context.called
        self._losses: dict[Member, float] = {}
        self._found: dict[str, Any] = {}
        self._step_queries = config.population * size
        self._gate_queries = config.gate_points * gate
        self.queries_per_step = self._step_queries + self._gate_queries

    def step(self, number: int) -> StepLog:
        with drawing(1):  # members of all steps are compared, so that texts of a row are drawn alike in all
            return self._step(number)

    def _step(self, number: int) -> StepLog:
        before = self.counts.copy()
        estimator, directions = self._zo.estimator, self._zo.directions(number)
        losses = self._zo.evaluator.losses(self._objective, self._asked, estimator.ask(directions))
        mean = losses.cpu().double().mean(dim=1)
        means: list[float] = torch.where(mean.isfinite(), mean, math.inf).tolist()
        members = {(number, place): mean for place, mean in enumerate(means)}
        finite = [mean for mean in means if mean < math.inf]
        if not finite:
            estimator.check_finite(directions, losses)
        coefficients = {f"member_loss_{place}": mean for place, mean in enumerate(means) if mean < math.inf}
        if len(finite) < len(means):
            coefficients["non_finite"] = float(len(means) - len(finite))
        if self._log_ties:
            coefficients["ties"] = float(len(set(means)) == 1)
        update = None
        if number + 1 == self.planned_steps:
            update = self._conclude({**self._losses, **members})
            gate = {name: value for name, value in self._found.items() if name.startswith("gate_loss")}
            coefficients |= {name: value for name, value in gate.items() if value is not None}
        self._losses |= members
        told = _as_told(self._named, coefficients)
        return StepLog(math.fsum(finite) / len(finite), self.counts - before, told, update)

    def _conclude(self, losses: Mapping[Member, float]) -> Update | None:
        """Weight the best members, run the gate, and move theta if it passes."""
        finite = {member: loss for member, loss in losses.items() if loss < math.inf}
        weights = self._weights(finite)
        found: dict[str, Any] = {"members": len(losses), "kept": 0}
        if len(finite) < len(losses):
            found["non_finite"] = len(losses) - len(finite)
        found["mean_loss"] = math.fsum(finite.values()) / len(finite)
        self._found = found
        if not weights:
            return None
        found["best_loss"] = min(losses.values())
        if self._config.vote:
            self._let_vote(sorted(finite, key=lambda member: (finite[member], member))[: self._config.keep])
            return None
        gradient = Displacement({key: -c / self._zo.estimator.epsilon for key, c in self._mean_of(weights).items()})
        update, state = self._zo.rule.update(Estimate.from_gradient(gradient), self._zo.state)
        if self._gate:
            asks: list[LossRequest] = [(self._objective, batch) for batch in self._gate]
            points = [Displacement(), update.displacement]
            with self._zo.evaluator.probe(asks, points) as probe:
                untrained, kept = self._gate_losses(probe.losses)
                found |= {"gate_loss_untrained": untrained, "gate_loss_kept": kept}
                if untrained is None or kept is None or not kept < untrained:
                    return None
                probe.update(update)
        else:
            self._zo.theta.apply(update)
        self._zo.state = state
        found["kept"] = len(weights)
        return update

    def _let_vote(self, members: list[Member]) -> None:
        """Keep the best members, best first, if the gate passes."""
        vote, found = self._vote_of(members), self._found
        if self._gate:
            both = list[list[float]]([[], []])
            for batch in self._gate:
                self._ask_gate(vote, batch, both)
            untrained, voted = (-math.fsum(rewards) / len(rewards) for rewards in both)
            found |= {"gate_loss_untrained": untrained, "gate_loss_kept": voted}
            if not voted < untrained:
                return
        found["kept"] = len(members)
        self._take_up(members)

    def _ask_gate(self, vote: Vote, batch: Any, rewards: Sequence[list[float]]) -> None:
        """The rewards on a batch of the model's own answers and of the voted ones, added to the sums."""
        context, points = self._context, [Displacement(), *vote.members]
        assert context.answers is not None
        assert context.rewards is not None
        with counting_forwards(self.model, self.counts):
            of_each = vote.of_each(self.model, batch, context.answers, points)
        self.counts.queries += len(points) * len(of_each)
        voted = [said[1:][winner(said[1:])] for said in of_each]
        examples = [one.example for one in batch.examples]
        for known, answers in zip(rewards, ([said[0] for said in of_each], voted), strict=True):
            known += context.rewards(examples, answers)

    def _vote_of(self, members: Sequence[Member]) -> Vote:
        def build(model: Any) -> Evaluator:
            evaluator: Evaluator = self._config.evaluator.build(model, self.backbone)
            return evaluator

        return Vote([self._mean_of({member: 1.0}) for member in members], build)

    def _take_up(self, members: list[Member]) -> None:
        """Answer by their vote from now on."""
        self._vote, vote = members, self._vote_of(members)
        self.score, self.write, self.members = vote.score, vote.write, len(members)

    def save(self, folder: Path) -> None:
        super().save(folder)
        if self._vote:
            save_members(self._vote_of(self._vote).members, folder)

    @staticmethod
    def _gate_losses(losses: torch.Tensor) -> list[float | None]:
        """The mean losses at both points; None for one that is not finite."""
        means: list[float] = losses.cpu().double().mean(dim=1).tolist()
        return [mean if math.isfinite(mean) else None for mean in means]

    def _weights(self, losses: Mapping[Member, float]) -> dict[Member, float]:
        """The weights w of the best members, by their finite losses; none if all are equal."""
        shaped = self._zo.estimator.shaped(torch.tensor(list(losses.values()), dtype=torch.float64)).tolist()
        ranked = sorted(zip(losses, shaped, strict=True), key=lambda one: (losses[one[0]], one[0]))
        better = {member: -u for member, u in ranked[: self._config.keep] if u < 0}
        return {member: weight / math.fsum(better.values()) for member, weight in better.items()}

    def _mean_of(self, weights: Mapping[Member, float]) -> Displacement:
        """The weighted mean of the members' displacements."""
        asked = {step: self._zo.estimator.ask(self._zo.directions(step)) for step, _ in weights}
        terms = []
        for (step, place), weight in weights.items():
            point = asked[step][place]
            assert isinstance(point, Displacement)  # its directions are shared
            terms.append(weight * point)
        return Displacement.sum(terms)

    def steps_within(self, queries: int) -> int:
        return max(0, queries - self._gate_queries) // self._step_queries

    def check_steps(self, steps: int) -> None:
        """Check the learning rate of the single move, and that there are enough members."""
        self._config.check_steps(steps)
        if self.lr_factor is not unscheduled:
            raise ConfigError(
                "method=select moves once, in its last step, so that its learning rate has no schedule",
                "set training.lr_scheduler_type=constant and no warm-up",
            )

    def summary(self) -> dict[str, Any]:
        return {"selection": _as_told(self._named, self._found)} if self._found else {}

    def conclusions(self) -> list[str]:
        """What was kept, or why nothing was."""
        found = self._found
        if not found:
            return ["the last step was not made: nothing is kept, and the model is as it was"]
        lost = found.get("non_finite", 0)
        left_out = (
            [f"{lost} of {found['members']} members had no finite {self._named} and were left out"] if lost else []
        )
        if "best_loss" not in found:
            return [
                *left_out,
                f"all {found['members'] - lost} members have the same {self._named}: nothing is kept; raise "
                "method.estimator.epsilon or method.batch_size",
            ]
        who = "the best" if self._config.keep == 1 else f"the best {self._config.keep}"
        best = f"{self._named} {self._told(found['best_loss'])}"
        said = f"{who} of {found['members']} members: {best} on the rows it was chosen by"
        if "gate_loss_kept" in found:
            kept_as = "kept as a vote" if self._config.vote else "kept"
            better = kept_as if found["kept"] else "not better: nothing is kept, and the model is as it was"
            kept, untrained = (self._told(found[f"gate_loss_{which}"]) for which in ("kept", "untrained"))
            said += f", {kept} on the rows of the gate, where the untrained model has {untrained}: {better}"
        return [*left_out, said]

    def _told(self, loss: float | None) -> str:
        if loss is None:
            return f"no finite {self._named}"
        return f"{loss if self._named == 'loss' else 0.0 - loss:.4g}"

    def state_dict(self, weights: bool) -> StateDict:
        """The loss of each member, null if it is not finite, and the result."""
        members = [[step, place, loss if loss < math.inf else None] for (step, place), loss in self._losses.items()]
        vote = {"vote": [list(one) for one in self._vote]} if self._vote else {}
        own = StateDict({"members": members, "found": self._found, **vote})
        return super().state_dict(weights).put("select", own)

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        values = state.part("select").values
        self._losses = {
            (int(step), int(place)): math.inf if loss is None else float(loss)
            for step, place, loss in values["members"]
        }
        self._found = dict(values["found"])
        if vote := [(int(step), int(place)) for step, place in values.get("vote", [])]:
            self._take_up(vote)


def _check_rule(config: SelectConfig) -> None:
    """Raise ConfigError for a rule whose first update is more than the displacement that the gate evaluates."""
    option, decay = config.rule.decay
    if decay or not RULES[config.rule.name].linear:
        does = "does more" if option == "weight_decay" else "has nothing to take back"
        what = f"{option.replace('_', ' ')} ({decay}) {does}" if decay else f"updates by {config.rule.name!r} are none"
        raise ConfigError(
            f"method=select keeps a displacement, and {what}",
            f"set method.rule.{option}=0" if decay else "set method.rule=sgd",
        )


def _as_told(named: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The values as logs show them: a loss that is minus a reward or score is logged as that, under its name."""
    if named == "loss":
        return dict(found)
    scores = {name: 0.0 - value for name, value in found.items() if "loss" in name and value is not None}
    return {name.replace("loss", named): scores.get(name, value) for name, value in found.items()}
