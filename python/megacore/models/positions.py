"""Settings of positions: kind, rotary lanes, and how rotary wavelengths are stretched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megacore.config.faults import fault
from megacore.config.fields import flag
from megacore.errors import Fault

_SCALING = "--rope-scaling-type"


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """The part of `ModelConfig` that says where a token stands."""

    max_position_embeddings: int | None = flag(
        "--max-position-embeddings",
        default=None,
        help="longest sequence in positions; at least --seq-length, and its default without a "
        "learned table; required with one",
        bounds="[1, inf)",
    )
    position_embedding_type: str = flag(
        "--position-embedding-type",
        default="learned_absolute",
        choices=("learned_absolute", "rope", "relative", "none"),
        help="absolute table, rotary, biases by distance (T5), or nothing",
    )
    use_rotary_position_embeddings: bool = flag(
        "--use-rotary-position-embeddings",
        default=False,
        help="old spelling; forces position type rope",
    )
    rotary_base: int = flag(
        "--rotary-base", default=10000, help="rope theta base (int)", bounds="[1, inf)"
    )
    rotary_base_local: int | None = flag(
        "--rotary-base-local",
        default=None,
        help="base, never scaled, of layers with --window-size; default that of the others",
        bounds="[1, inf)",
    )
    rotary_percent: float = flag(
        "--rotary-percent",
        default=1.0,
        help="fraction of head dim that is rotated",
        bounds="(0, 1]",
    )
    rotary_interleaved: bool = flag(
        "--rotary-interleaved",
        default=False,
        help="rotate pairs of neighbouring channels instead of first with second half",
    )
    rotary_seq_len_interpolation_factor: int | None = flag(
        "--rotary-seq-len-interpolation-factor",
        default=None,
        help="divide positions by this before rotating",
        bounds="[1, inf)",
    )
    use_rope_scaling: bool = flag(
        "--use-rope-scaling",
        default=False,
        help="shorthand for --rope-scaling-type llama3",
    )
    rope_scaling_type: str | None = flag(
        "--rope-scaling-type",
        default=None,
        choices=("linear", "llama3", "yarn", "longrope"),
        help="how rotary wavelengths are stretched for sequences longer than those of the first "
        "training",
    )
    rope_scaling_factor: float = flag(
        "--rope-scaling-factor",
        default=8.0,
        help="times the original length (with longrope only for the default attention factor)",
        bounds="[1, inf)",
    )
    rope_scaling_original_length: int | None = flag(
        "--rope-scaling-original-max-position-embeddings",
        default=None,
        help="positions of the first training; default 8192 with llama3, required with yarn and "
        "longrope",
        bounds="[2, inf)",
    )
    rope_scaling_low_freq_factor: float = flag(
        "--rope-scaling-low-freq-factor",
        default=1.0,
        help="llama3: wavelengths above original length / this are stretched in full",
        bounds="(0, inf)",
    )
    rope_scaling_high_freq_factor: float = flag(
        "--rope-scaling-high-freq-factor",
        default=4.0,
        help="llama3: wavelengths below original length / this are not stretched",
        bounds="(0, inf)",
    )
    rope_scaling_beta_fast: float = flag(
        "--rope-scaling-beta-fast",
        default=32.0,
        help="yarn: lanes with at least so many turns in the original length are not stretched",
        bounds="(0, inf)",
    )
    rope_scaling_beta_slow: float = flag(
        "--rope-scaling-beta-slow",
        default=1.0,
        help="yarn: lanes with at most so many turns are stretched in full",
        bounds="(0, inf)",
    )
    rope_scaling_truncate: bool = flag(
        "--no-rope-scaling-truncate",
        default=True,
        help="yarn: the ramp between stretched and other lanes may begin within a lane",
    )
    rope_scaling_attention_factor: float | None = flag(
        "--rope-scaling-attention-factor",
        default=None,
        help="yarn and longrope: factor of the rotated lanes; default by the rule of the paper",
        bounds="(0, inf)",
    )
    rope_scaling_short_factors: tuple[float, ...] | None = flag(
        "--rope-scaling-short-factors",
        default=None,
        nargs="+",
        help="longrope: divisor of each pair of rotated lanes up to the original length",
        bounds="(0, inf)",
    )
    rope_scaling_long_factors: tuple[float, ...] | None = flag(
        "--rope-scaling-long-factors",
        default=None,
        nargs="+",
        help="longrope: the same for longer sequences",
        bounds="(0, inf)",
    )
    add_position_embedding: bool = flag(
        "--no-position-embedding",
        default=True,
        help="deprecated; only with rotary positions, where it changes nothing",
    )

    @property
    def position_kind(self) -> str:
        """Kind of positions, the old spelling of rotary positions included."""
        return "rope" if self.use_rotary_position_embeddings else self.position_embedding_type

    @property
    def scaling_kind(self) -> str | None:
        """Kind of scaling, the shorthand included."""
        return "llama3" if self.use_rope_scaling else self.rope_scaling_type

    @property
    def original_length(self) -> int | None:
        """Positions of the first training, where a scaling needs them."""
        if self.rope_scaling_original_length is None and self.scaling_kind == "llama3":
            return 8192
        return self.rope_scaling_original_length

    def position_faults(self, head_width: int | None) -> Iterator[Fault]:
        """Rules of positions that these values break.

        Args:
            head_width: Channels of a head, if known.
        """
        given: dict[str, object]
        if not self.add_position_embedding and self.position_kind == "learned_absolute":
            yield fault("MC0107", {"--position-embedding-type": self.position_embedding_type})
        if self.use_rotary_position_embeddings and self.position_embedding_type == "none":
            given = {"--use-rotary-position-embeddings": "", "--position-embedding-type": "none"}
            yield fault("MC0108", given, allowed="one of them")
        rotated = None
        if head_width is not None and self.position_kind == "rope":
            rotated = int(head_width * self.rotary_percent)
            if rotated < 2 or rotated % 2:
                given = {"--rotary-percent": self.rotary_percent, "channels of a head": head_width}
                yield fault("MC0106", given, more=f"{rotated}", allowed="2, 4, 6, ...")
        yield from self._scaling_faults(rotated)

    def _scaling_faults(self, rotated: int | None) -> Iterator[Fault]:
        kind = self.scaling_kind
        if kind is None:
            return
        given: dict[str, object]
        shown: dict[str, object] = {_SCALING: kind}
        if self.use_rope_scaling and self.rope_scaling_type not in (None, "llama3"):
            given = {"--use-rope-scaling": "", _SCALING: self.rope_scaling_type}
            yield fault("MC0109", given, allowed="one of them")
        if self.rotary_seq_len_interpolation_factor is not None:
            factor = self.rotary_seq_len_interpolation_factor
            given = {**shown, "--rotary-seq-len-interpolation-factor": factor}
            yield fault("MC0109", given, allowed="one of them")
        if self.position_kind != "rope":
            given = {**shown, "--position-embedding-type": self.position_kind}
            yield fault("MC0110", given, allowed="--position-embedding-type rope")
        if kind in ("yarn", "longrope") and self.original_length is None:
            name = "--rope-scaling-original-max-position-embeddings"
            yield fault("MC0111", {**shown, name: "(not given)"}, more=name)
        low, high = self.rope_scaling_low_freq_factor, self.rope_scaling_high_freq_factor
        if kind == "llama3" and high <= low:
            given = {
                "--rope-scaling-low-freq-factor": low,
                "--rope-scaling-high-freq-factor": high,
            }
            yield fault("MC0112", given, allowed=f"more than {low}")
        fast, slow = self.rope_scaling_beta_fast, self.rope_scaling_beta_slow
        if kind == "yarn" and fast < slow:
            given = {"--rope-scaling-beta-fast": fast, "--rope-scaling-beta-slow": slow}
            yield fault("MC0112", given, allowed=f"at least {slow}")
        if kind == "longrope":
            for name, factors in (
                ("--rope-scaling-short-factors", self.rope_scaling_short_factors),
                ("--rope-scaling-long-factors", self.rope_scaling_long_factors),
            ):
                count = 0 if factors is None else len(factors)
                if count == 0 or (rotated is not None and count != rotated // 2):
                    needed = "a number" if rotated is None else f"{rotated // 2} numbers"
                    given = {**shown, name: f"{count} numbers"}
                    yield fault("MC0111", given, more=name, allowed=f"{needed}, one per pair")
