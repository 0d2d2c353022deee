"""Tokens/s, TFLOP/s and MFU of a run, with the convention and the peak said beside them."""

from __future__ import annotations

from dataclasses import dataclass

from megacore.models.config import RecomputeConfig
from megacore.training.flops import ModelShape, recompute_flops, training_flops
from megacore.training.peak import Peak


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed of some iterations.

    Attributes:
        tokens_per_second: Over all devices.
        tflops: Model TFLOP/s per device, attention counted in full (the log line's throughput).
        tflops_causal: The same, with only the causal half of attention.
        tflops_hardware: `tflops` plus what recompute adds.
        mfu: `tflops` / peak.
    """

    tokens_per_second: float
    tflops: float
    tflops_causal: float
    tflops_hardware: float
    mfu: float


@dataclass(frozen=True, kw_only=True)
class SpeedModel:
    """Turns time into speed.

    Attributes:
        shape: The model.
        recompute: What is computed twice.
        peak: Peak of one device.
        world_size: Number of devices.
    """

    shape: ModelShape
    recompute: RecomputeConfig
    peak: Peak
    world_size: int = 1

    def flops(self, batch_size: int) -> float:
        """Operations of one iteration of `batch_size` sequences, by the convention."""
        return training_flops(self.shape, batch_size)

    def speed(self, samples: int, seconds: float) -> Speed:
        """Speed of `samples` sequences in `seconds`."""
        unit = max(seconds, 1e-9) * 1e12 * self.world_size
        full = training_flops(self.shape, samples)
        return Speed(
            tokens_per_second=samples * self.shape.seq_length / max(seconds, 1e-9),
            tflops=full / unit,
            tflops_causal=training_flops(self.shape, samples, causal=True) / unit,
            tflops_hardware=(full + recompute_flops(self.shape, samples, self.recompute)) / unit,
            mfu=full / unit / self.peak.tflops,
        )

    def convention(self, batch_size: int) -> str:
        """What the figures mean, printed once."""
        full = training_flops(self.shape, batch_size)
        causal = training_flops(self.shape, batch_size, causal=True)
        again = recompute_flops(self.shape, batch_size, self.recompute)
        lines = [
            f"TFLOP/s and MFU count {self.shape.formula} operations per iteration:",
            f"  B={batch_size}: {full:.4e}, attention counted in full ({causal:.4e} if only its "
            "causal half is)",
            f"  MFU is relative to {self.peak.tflops:.4g} TFLOP/s: {self.peak.source}",
        ]
        if again > 0:
            lines.append(f"  recompute does {again:.4e} operations more, which are not counted")
        return "\n".join(lines)
