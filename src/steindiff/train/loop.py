"""The training loop: EDM's loss, AdamW, a weight average, and a checkpoint from which the run goes on exactly.

Every step is a function of (parameters, optimiser, average) and its own number; randomness is derived from the recipe's seed
and that number (`feed`), so the state on disk is all there is. `accelerate` places the work on devices and processes.
"""

import copy
import dataclasses
import json
import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steindiff import grids
from steindiff.denoisers import Labelled
from steindiff.errors import NonFiniteError, needs, require
from steindiff.io import jsons
from steindiff.io.files import plain, writable_folder, write_text
from steindiff.io.folders import locked_by_first
from steindiff.io.images import contact_sheet, save_png, to_uint8
from steindiff.models.datasets import ImageSet
from steindiff.models.networks import EDMPrecond, UNet, UNetConfig
from steindiff.noise import initial_noise
from steindiff.sampling import sample
from steindiff.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from steindiff.train.feed import Feed
from steindiff.train.objective import loss_per_sigma, weighted_errors
from steindiff.train.plan import Options
from steindiff.train.recipe import Recipe, average_weight, learning_rate

with needs("cli,train", "training"):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from tqdm.auto import tqdm

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
_JUDGED = 1024  # images of either kind that the loss per noise level is reported on
_TIMED = 40  # steps of a trial


@dataclass(frozen=True)
class Trained:
    """The averaged network, in float32 on the CPU in evaluation mode, and how far it is.

    Attributes:
        step, seconds: optimiser steps done, and their time over all sessions, without reports.
        main_process: whether this process is the one that writes files.
    """

    denoiser: EDMPrecond
    step: int
    seconds: float
    main_process: bool


def train(data: ImageSet, held_out: ImageSet, config: UNetConfig, recipe: Recipe, outdir: Path, options: Options) -> Trained:
    """Train, or go on training, in `outdir`, which holds checkpoint.pt, log.jsonl and samples/ from the first log line on.

    Raises:
        InputError: data that the network cannot take, another run's checkpoint, a folder that cannot be written to, or that
            another process has.
        NonFiniteError: the loss is NaN or infinite; the last checkpoint stays.
    """
    with locked_by_first(outdir):
        return _train(_Run(data, held_out, config, recipe, outdir, options))


def _train(run: "_Run") -> Trained:
    recipe, options = run.recipe, run.options
    begun, last = time.perf_counter(), False
    bar = tqdm(
        total=recipe.steps * recipe.batch, initial=run.step * recipe.batch, unit="img", unit_scale=True, mininterval=2.0,
        desc="training", disable=not (options.progress and run.accelerator.is_main_process),
    )  # fmt: skip
    with bar:
        while run.step < recipe.steps and not last:
            run.advance()
            bar.update(recipe.batch)
            if run.step % options.log_every == 0 or run.step == recipe.steps:
                last = run.agree(time.perf_counter() - begun >= options.session_seconds)
                bar.set_postfix(loss=f"{run.log(last):.4f}", refresh=False)
    return Trained(run.average.to("cpu").eval(), run.step, run.seconds, run.accelerator.is_main_process)


def seconds_per_step(data: ImageSet, config: UNetConfig, recipe: Recipe, outdir: Path, options: Options) -> float:
    """The time of one optimiser step here, after a quarter as many to warm up; nothing is kept."""
    run = _Run(data, data.take(slice(1)), config, recipe, outdir, options)
    for steps in (_TIMED // 4, _TIMED):
        begun = time.perf_counter()
        for _ in range(steps):
            run.advance()
        run.agree(True)
    return (time.perf_counter() - begun) / _TIMED


class _Run:
    """The mutable state of one training session: of a new run, or of the one that the folder's checkpoint holds."""

    def __init__(
        self, data: ImageSet, held_out: ImageSet, config: UNetConfig, recipe: Recipe, outdir: Path, options: Options
    ) -> None:
        shapes, channels = {"training": data.event_shape, "held_out": held_out.event_shape}, config.image_channels
        same = held_out.event_shape == data.event_shape and data.event_shape[0] == channels
        require(same, "all three must agree", **shapes, channels_of_network=channels)
        both = config.null_class == (recipe.label_dropout > 0)
        need = "a null class is what labels are dropped for: need both or neither"
        require(both, need, null_class=config.null_class, label_dropout=recipe.label_dropout)
        self.recipe, self.options, self.outdir = recipe, options, outdir
        AcceleratorState._reset_state()  # of an earlier run in this process, whose precision would stay
        # Left to itself, accelerate lets several processes without a GPU train one by one, each as the first.
        together = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()
        self.accelerator = Accelerator(mixed_precision=recipe.precision, cpu=options.cpu or together)
        torch.manual_seed(recipe.seed)
        net = EDMPrecond(UNet(config), data.deviation)
        net(torch.zeros(1, *data.event_shape), torch.ones(1))  # refuses a resolution before anything is written
        settings = {"recipe": dataclasses.asdict(recipe), "unet": dataclasses.asdict(config), "sigma_data": net.sigma_data}
        images = {"sha256": data.sha256, "images": len(data), "event_shape": data.event_shape}
        self.identity: dict[str, Any] = plain({**settings, "data": images})
        writable_folder(outdir)
        held = load_checkpoint(outdir / CHECKPOINT, self.identity) if (outdir / CHECKPOINT).exists() else None
        self._place(net, held)
        here = self.accelerator
        self.feed = Feed(data.to(here.device), recipe, config.num_classes > 0, here.process_index, here.num_processes)
        judged = ("held_out", held_out), ("trained_on", data)
        self.judged = {name: _evenly(images, _JUDGED).to(here.device) for name, images in judged}
        self.step, self.seconds = (held.step, held.seconds) if held else (0, 0.0)
        self.losses: list[Tensor] = []  # since the last log line
        if here.is_main_process:
            _truncate_log(outdir / LOG, self.step)
        self.saved_at = self.clock = time.perf_counter()

    def _place(self, net: EDMPrecond, held: Checkpoint | None) -> None:
        """Network, average and optimiser on the device, as the checkpoint has them."""
        device, recipe = self.accelerator.device, self.recipe
        if device.type == "cuda":
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(net).eval().requires_grad_(False).to(device)
        net = net.to(device)
        if held:
            net.load_state_dict(held.network)
            self.average.load_state_dict(held.average)
        if self.options.compile:
            net.network.compile(dynamic=False)
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=recipe.lr, betas=(0.9, recipe.beta2), weight_decay=recipe.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )  # fmt: skip
        if held:
            optimizer.load_state_dict(held.optimizer)
        self.net, self.optimizer = self.accelerator.prepare(net.train(), optimizer)
        if held and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(held.scaler)

    def advance(self) -> None:
        """One optimiser step."""
        step = self.step
        torch.manual_seed(self.feed.dropout_seed(step))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.recipe)
        batch = self.feed.batch(step)
        x0, noise = batch.x0, batch.noise
        if x0.device.type == "cuda":
            x0, noise = (z.contiguous(memory_format=torch.channels_last) for z in (x0, noise))
        loss = weighted_errors(self.net, self.average.sigma_data, x0, batch.sigma, noise, batch.labels).mean()
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.net.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        bare = self.accelerator.unwrap_model(self.net)
        with torch.no_grad():
            weight = average_weight(step, self.recipe)
            torch._foreach_lerp_(list(self.average.parameters()), list(bare.parameters()), weight)
        self.losses.append(loss.detach())
        self.step += 1

    def agree(self, here: bool) -> bool:
        """Whether it is so on any process; also waits for the device."""
        flag = torch.tensor(float(here), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum") > 0)

    def log(self, last: bool = False) -> float:
        """Close the window of steps since the last line: a log line, perhaps a report, perhaps a checkpoint; its mean loss."""
        mean = float(self.accelerator.reduce(sum(self.losses) / len(self.losses), reduction="mean"))
        self.losses.clear()
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
        device, classes = self.accelerator.device, self.identity["unet"]["num_classes"]
        report: dict[str, Any] = {}
        for name, images in self.judged.items():
            labels = images.labels if classes else None
            report[name] = loss_per_sigma(self.average, self.average.sigma_data, images.points(), labels)
        x = initial_noise(range(64), self.feed.data.event_shape, device=device)
        denoiser = Labelled(self.average, torch.arange(64, device=device) % classes) if classes else self.average
        images8 = to_uint8(sample("dpmpp_2m", denoiser, x, grids.karras(20)).x)
        scale = max(1, 64 // images8.shape[1])
        save_png(writable_folder(self.outdir / "samples") / f"{self.step:08d}.png", contact_sheet(images8, 8, scale))
        return report

    def _save(self) -> None:
        bare, scaler = self.accelerator.unwrap_model(self.net), self.accelerator.scaler
        net, average, optimizer = (part.state_dict() for part in (bare, self.average, self.optimizer))
        scale = scaler.state_dict() if scaler is not None else {}
        state = Checkpoint(self.step, self.seconds, self.identity, net, average, optimizer, scale)
        save_checkpoint(self.outdir / CHECKPOINT, state)
        self.saved_at = time.perf_counter()


def _evenly(images: ImageSet, count: int) -> ImageSet:
    """At most `count` images, evenly spaced: archives are often sorted by class."""
    return images.take(torch.linspace(0, len(images) - 1, min(count, len(images))).round().long())


def _truncate_log(path: Path, step: int) -> None:
    """Drop what a killed session logged after its last checkpoint, and damaged lines, such as one cut short by the kill."""
    kept = list[bytes]()
    for line in path.read_bytes().splitlines() if path.exists() and step else []:
        with suppress(ValueError, KeyError, TypeError):
            if jsons.parse(line)["step"] <= step:
                kept.append(line + b"\n")
    write_text(path, b"".join(kept).decode())
