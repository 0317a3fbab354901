"""The training loop: EDM's loss, AdamW, a weight average, and a checkpoint from which the run goes on exactly.

Every step is a function of (parameters, optimiser, average) and its own number; randomness is derived from the recipe's seed
and that number (`feed`), so the state on disk is all there is. `accelerate` places the work on devices and processes.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm.auto import tqdm

from steindiff import grids
from steindiff.denoisers import Labelled
from steindiff.errors import InputError, NonFiniteError
from steindiff.io.files import plain, writable_folder, write_text
from steindiff.io.images import contact_sheet, save_png, to_uint8
from steindiff.models.datasets import ImageSet
from steindiff.models.networks import EDMPrecond, UNet, UNetConfig
from steindiff.noise import initial_noise
from steindiff.sampling import sample
from steindiff.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from steindiff.train.feed import Batch, Feed
from steindiff.train.objective import loss_per_sigma, weighted_errors
from steindiff.train.recipe import Recipe, average_weight, learning_rate

__all__ = ["CHECKPOINT", "LOG", "Options", "Trained", "identity_of", "seconds_per_step", "train"]

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
_JUDGED = 1024  # images of either kind that the loss per noise level is reported on


@dataclass(frozen=True)
class Options:
    """How a run is carried out; the recipe holds none of it.

    Args:
        log_every: steps between log lines; checkpoints are written at such steps only.
        report_every: steps between reports (loss per noise level, sample grid); 0: only at the end.
        checkpoint_seconds: least time between checkpoints; 0: at every log line.
        session_seconds: stop, with a checkpoint to go on from, at the first log line after this long.
        compile: `torch.compile` the network.
        cpu: stay on the CPU where there is another device.
        progress: a bar, on the first process.
    """

    log_every: int = 50
    report_every: int = 1000
    checkpoint_seconds: float = 120.0
    session_seconds: float = math.inf
    compile: bool = False
    cpu: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if self.log_every < 1 or self.report_every < 0 or self.checkpoint_seconds < 0 or not self.session_seconds > 0:
            raise InputError(
                f"log_every={self.log_every}, report_every={self.report_every}, checkpoint_seconds={self.checkpoint_seconds}, "
                f"session_seconds={self.session_seconds}: need at least 1, 0, 0 and more than 0"
            )


@dataclass(frozen=True)
class Trained:
    """The averaged network, in float32 on the CPU in evaluation mode, and how far it is.

    Attributes:
        step: optimiser steps done; the recipe's, unless the session ended first.
        seconds: the training time over all sessions; reports do not count.
        main_process: whether this process is the one that writes files.
    """

    denoiser: EDMPrecond
    step: int
    seconds: float
    main_process: bool


def identity_of(recipe: Recipe, config: UNetConfig, data: ImageSet, sigma_data: float) -> dict[str, Any]:
    """What two runs must share to be the same run."""
    identity: dict[str, Any] = plain(
        {
            "recipe": dataclasses.asdict(recipe),
            "unet": dataclasses.asdict(config),
            "data": {"sha256": data.sha256, "images": len(data), "event_shape": list(data.event_shape)},
            "sigma_data": sigma_data,
        }
    )
    return identity


def train(
    data: ImageSet, held_out: ImageSet, config: UNetConfig, recipe: Recipe, outdir: str | Path, options: Options | None = None
) -> Trained:
    """Train, or go on training, in `outdir`, which holds checkpoint.pt, log.jsonl and samples/ from the first log line on.

    Raises:
        InputError: data that the network cannot take, another run's checkpoint, a folder that cannot be written to.
        NonFiniteError: the loss is NaN or infinite; the last checkpoint stays.
    """
    options = options or Options()
    run = _Run.begin(data, held_out, config, recipe, Path(outdir), options)
    total, start, begun = recipe.steps, run.step, time.perf_counter()
    bar = tqdm(
        total=total * recipe.batch, initial=start * recipe.batch, unit="img", unit_scale=True, mininterval=2.0, desc="training",
        disable=not (options.progress and run.accelerator.is_main_process),
    )  # fmt: skip
    with bar:
        for step in range(start, total):
            run.advance(step)
            bar.update(recipe.batch)
            if (step + 1) % options.log_every == 0 or step + 1 == total:
                last = run.agree(time.perf_counter() - begun >= options.session_seconds)
                bar.set_postfix(loss=f"{run.log(last):.4f}", refresh=False)
                if last:
                    break
    return Trained(run.average.to("cpu").eval(), run.step, run.seconds, run.accelerator.is_main_process)


def seconds_per_step(
    data: ImageSet, config: UNetConfig, recipe: Recipe, outdir: str | Path, options: Options, steps: int = 40
) -> float:
    """The time of one optimiser step here, over `steps` of them after a quarter as many to warm up; nothing is kept."""
    run = _Run.begin(data, data.take(slice(1)), config, recipe, Path(outdir), options)
    begun = time.perf_counter()
    for step in range(steps + steps // 4):
        if step == steps // 4:
            run.agree(True)
            begun = time.perf_counter()
        run.advance(step)
    run.agree(True)
    return (time.perf_counter() - begun) / steps


@dataclass
class _Run:
    """The mutable state of one training session."""

    accelerator: Accelerator
    feed: Feed
    net: nn.Module
    average: EDMPrecond
    optimizer: Any
    recipe: Recipe
    options: Options
    outdir: Path
    identity: dict[str, Any]
    judged: tuple[ImageSet, ImageSet]
    step: int = 0
    seconds: float = 0.0
    saved_at: float = 0.0
    clock: float = 0.0
    loss_sum: Tensor | None = None
    in_sum: int = 0

    @classmethod
    def begin(
        cls, data: ImageSet, held_out: ImageSet, config: UNetConfig, recipe: Recipe, outdir: Path, options: Options
    ) -> _Run:
        """A new run, or the one that the folder's checkpoint holds."""
        if config.image_channels != data.event_shape[0] or held_out.event_shape != data.event_shape:
            raise InputError(
                f"training images {data.event_shape}, held-out images {held_out.event_shape}, a network of "
                f"{config.image_channels} channels: all three must agree"
            )
        AcceleratorState._reset_state()  # of an earlier run in this process, whose precision would stay
        accelerator = Accelerator(mixed_precision=recipe.precision, cpu=options.cpu)
        torch.manual_seed(recipe.seed)
        sigma_data = round(float(data.points().std()), 4)
        net = EDMPrecond(UNet(config), sigma_data)
        net(torch.zeros(1, *data.event_shape), torch.ones(1))  # refuses a resolution before anything is written
        identity = identity_of(recipe, config, data, sigma_data)
        writable_folder(outdir)
        held = load_checkpoint(outdir / CHECKPOINT, identity) if (outdir / CHECKPOINT).exists() else None
        return cls._assemble(accelerator, data, held_out, net, recipe, outdir, options, identity, held)

    @classmethod
    def _assemble(
        cls, accelerator: Accelerator, data: ImageSet, held_out: ImageSet, net: EDMPrecond, recipe: Recipe, outdir: Path,
        options: Options, identity: dict[str, Any], held: Checkpoint | None,
    ) -> _Run:  # fmt: skip
        device = accelerator.device
        if device.type == "cuda":
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = copy.deepcopy(net).eval().requires_grad_(False).to(device)
        net = net.to(device)
        if held:
            net.load_state_dict(held.network)
            average.load_state_dict(held.average)
        if options.compile:
            net.network.compile(dynamic=False)
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=recipe.lr, betas=(0.9, recipe.beta2), weight_decay=recipe.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )  # fmt: skip
        if held:
            optimizer.load_state_dict(held.optimizer)
        wrapped, optimizer = accelerator.prepare(net.train(), optimizer)
        if held and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(held.scaler)
        here = dataclasses.replace(
            data, pixels=data.pixels.to(device), labels=None if data.labels is None else data.labels.to(device)
        )
        conditional = bool(identity["unet"]["num_classes"])
        feed = Feed(here, recipe, conditional, accelerator.process_index, accelerator.num_processes)
        judged = tuple(_evenly(images, _JUDGED) for images in (held_out, data))
        run = cls(accelerator, feed, wrapped, average, optimizer, recipe, options, outdir, identity, (judged[0], judged[1]))
        if held:
            run.step, run.seconds = held.step, held.seconds
        if accelerator.is_main_process:
            _truncate_log(outdir / LOG, run.step)
        run.saved_at = run.clock = time.perf_counter()
        return run

    def advance(self, step: int) -> None:
        """One optimiser step."""
        torch.manual_seed(self.feed.dropout_seed(step))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.recipe)
        loss = self._loss(self.feed.batch(step))
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.net.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        bare = self.accelerator.unwrap_model(self.net)
        with torch.no_grad():
            weight = average_weight(step, self.recipe)
            torch._foreach_lerp_(list(self.average.parameters()), list(bare.parameters()), weight)
        self.loss_sum = loss.detach() if self.loss_sum is None else self.loss_sum + loss.detach()
        self.in_sum += 1
        self.step = step + 1

    def _loss(self, batch: Batch) -> Tensor:
        x0, noise = batch.x0, batch.noise
        if x0.device.type == "cuda":
            x0, noise = (z.contiguous(memory_format=torch.channels_last) for z in (x0, noise))
        sigma_data = self.identity["sigma_data"]
        return weighted_errors(self.net, sigma_data, x0, batch.sigma, noise, batch.labels).mean()

    def agree(self, here: bool) -> bool:
        """Whether it is so on any process; also waits for the device."""
        flag = torch.tensor(float(here), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum") > 0)

    def log(self, last: bool = False) -> float:
        """Close the window of steps since the last line: a log line, perhaps a report, perhaps a checkpoint; its mean loss."""
        assert self.loss_sum is not None
        mean = float(self.accelerator.reduce(self.loss_sum / self.in_sum, reduction="mean"))
        self.loss_sum, self.in_sum = None, 0
        self.seconds += time.perf_counter() - self.clock
        if not math.isfinite(mean):
            raise NonFiniteError(
                f"the training loss is {mean} at step {self.step}: lower the learning rate ({self.recipe.lr}) or use another "
                f"precision ({self.recipe.precision!r}); the last checkpoint is kept"
            )
        if self.accelerator.is_main_process:
            line = {"step": self.step, "loss": mean, "lr": learning_rate(self.step - 1, self.recipe), "seconds": self.seconds}
            done = self.step == self.recipe.steps
            if done or (self.options.report_every and self.step % self.options.report_every == 0):
                line |= self._report()
            with open(self.outdir / LOG, "a", encoding="utf-8") as file:
                file.write(json.dumps(plain(line)) + "\n")
            if done or last or time.perf_counter() - self.saved_at >= self.options.checkpoint_seconds:
                self._save()
        self.accelerator.wait_for_everyone()
        self.clock = time.perf_counter()
        return mean

    def _report(self) -> dict[str, Any]:
        """Loss per noise level on images held out and trained on, and a grid of samples, by the average."""
        report: dict[str, Any] = {}
        device = self.accelerator.device
        conditional = self.feed.conditional
        for name, images in zip(("held_out", "trained_on"), self.judged, strict=True):
            labels = images.labels.to(device) if conditional and images.labels is not None else None
            report[name] = loss_per_sigma(self.average, self.average.sigma_data, images.points().to(device), labels)
        x = initial_noise(range(64), self.judged[0].event_shape, device=device)
        classes = self.identity["unet"]["num_classes"]
        denoiser = Labelled(self.average, torch.arange(64, device=device) % classes) if classes else self.average
        images8 = to_uint8(sample("dpmpp_2m", denoiser, x, grids.karras(20)).x)
        scale = max(1, 64 // images8.shape[1])
        save_png(writable_folder(self.outdir / "samples") / f"{self.step:08d}.png", contact_sheet(images8, 8, scale))
        return report

    def _save(self) -> None:
        scaler = self.accelerator.scaler
        save_checkpoint(
            self.outdir / CHECKPOINT,
            Checkpoint(
                self.step, self.seconds, self.identity, self.accelerator.unwrap_model(self.net).state_dict(),
                self.average.state_dict(), self.optimizer.state_dict(), scaler.state_dict() if scaler is not None else {},
            ),
        )  # fmt: skip
        self.saved_at = time.perf_counter()


def _evenly(images: ImageSet, count: int) -> ImageSet:
    """At most `count` images, evenly spaced: archives are often sorted by class."""
    return images.take(torch.linspace(0, len(images) - 1, min(count, len(images))).round().long())


def _truncate_log(path: Path, step: int) -> None:
    """Drop what a killed session logged after its last checkpoint."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() and step else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):  # a line cut short by the kill
            break
    write_text(path, "".join(kept))
