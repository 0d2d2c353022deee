"""The registry of configuration faults: every stable id, what it means and what to do.

docs/errors.md is generated from this table. An id is never reused for another rule.
"""

from __future__ import annotations

from collections.abc import Mapping

from megacore.config.fault_rule import Rule
from megacore.config.faults_convert import CONVERT_RULES
from megacore.config.faults_encoders import ENCODER_RULES
from megacore.config.faults_evaluation import EVALUATION_RULES
from megacore.config.faults_finetune import FINETUNE_RULES
from megacore.config.faults_kernels import KERNEL_RULES
from megacore.config.faults_parallel import PARALLEL_RULES
from megacore.config.faults_planning import PLANNING_RULES
from megacore.config.faults_sentences import SENTENCE_RULES
from megacore.errors import Fault

RULES: dict[str, Rule] = {
    # Reading the command line and configuration files.
    "MC0001": Rule(
        "Unknown flag",
        "A flag that nothing reads would be ignored without a word, and the run would not be the "
        "one that was asked for. All unknown flags are listed at once.",
        "Take the suggested spelling, or see `--help` for the flags of this command.",
    ),
    "MC0002": Rule(
        "A flag needs a value",
        "The flag was the last word, or another flag follows where its value should be.",
        "Give the value after the flag, or remove the flag.",
    ),
    "MC0003": Rule(
        "The value has the wrong type",
        "The text cannot be read as the type of the setting, for example `12k` as an integer.",
        "Write a value of the type named in the message.",
    ),
    "MC0004": Rule(
        "The value is not one of the choices",
        "The setting knows a fixed list of values; spelling and case count.",
        "Take one of the listed values.",
    ),
    "MC0005": Rule(
        "The value is out of range",
        "The number is outside the interval in which the setting has a meaning.",
        "Choose a value in the range that the message names.",
    ),
    "MC0006": Rule(
        "A switch takes no value",
        "Switches such as `--bf16` are on when they are given; `--bf16=false` has no meaning.",
        "Give the switch alone, or leave it out. `--unset NAME` takes back what a file sets.",
    ),
    "MC0007": Rule(
        "Unexpected argument",
        "A word stands where no value is expected; often a flag lost its dashes, or a path with "
        "a space in it was not quoted.",
        "Remove the word, or put the flag that it belongs to before it.",
    ),
    "MC0008": Rule(
        "The configuration file cannot be read",
        "The file does not exist, is not valid YAML or TOML, or is not a mapping at the top.",
        "Correct the file at the place that the message names. The name decides: `.toml` is TOML, "
        "`.yaml` and `.yml` are YAML.",
    ),
    "MC0009": Rule(
        "Unknown key in a configuration file",
        "A key that nothing reads would be ignored without a word.",
        "Take the suggested spelling. Keys are flag names without the two dashes (dashes or "
        "underscores), alone or under the name of their group.",
    ),
    "MC0010": Rule(
        "A key is given twice in a configuration file",
        "YAML would take the last one in silence, and `hidden-size` and `hidden_size` are one key.",
        "Keep one of them.",
    ),
    "MC0011": Rule(
        "Not supported",
        "The flag changes results, storage or the use of machines in a way that megacore does "
        "not do (yet), so going on without it would be another run than the one asked for. "
        "docs/flags.md lists the state of every flag.",
        "Remove the flag or give it the value that the message allows.",
    ),
    "MC0012": Rule(
        "The flag was removed",
        "Old scripts still use it; the flag that replaces it means something slightly different, "
        "so it is not translated silently.",
        "Use the flag that the message names.",
    ),
    "MC0013": Rule(
        "`--unset` needs the name of a setting",
        "The word is not the name of a setting of this command.",
        "Take the suggested spelling.",
    ),
    "MC0015": Rule(
        "RANK, WORLD_SIZE and LOCAL_RANK must be integers that fit together",
        "The launcher's variables tell the process who it is; RANK must be less than WORLD_SIZE.",
        "Unset them for a single process, or start through torchrun.",
    ),
    # The model.
    "MC0101": Rule(
        "A required setting is missing",
        "There is no sensible default for it.",
        "Give the flag, or take the value from a checkpoint with `--load DIR "
        "--use-checkpoint-args`.",
    ),
    "MC0102": Rule(
        "--num-layers and --encoder-num-layers name the same thing",
        "For a decoder-only model either may be given and the other is copied from it.",
        "Keep `--num-layers`.",
    ),
    "MC0103": Rule(
        "--num-attention-heads must divide --hidden-size",
        "Without `--kv-channels` a head is hidden size / heads wide, which must be whole.",
        "Change one of the two, or give the width of a head with `--kv-channels`.",
    ),
    "MC0104": Rule(
        "--num-query-groups must divide --num-attention-heads",
        "In grouped-query attention every key/value head serves the same number of query heads.",
        "Choose a divisor of the number of heads.",
    ),
    "MC0105": Rule(
        "These activations exclude each other",
        "Each of `--squared-relu`, `--swiglu` and `--geglu` names the activation of the "
        "feed-forward layer; `--quick-gelu` and `--openai-gelu` are two forms of GELU.",
        "Keep one of them.",
    ),
    "MC0106": Rule(
        "The rotated part of a head must be a positive even number of channels",
        "Rotary positions turn channels in pairs: int(kv channels * `--rotary-percent`) of them.",
        "Change `--rotary-percent` or `--kv-channels`.",
    ),
    "MC0107": Rule(
        "--no-position-embedding is only allowed with rotary positions",
        "It is an old way to say that there is no learned table; with a learned table it "
        "contradicts `--position-embedding-type learned_absolute`.",
        "Say `--position-embedding-type rope` or `--position-embedding-type none`.",
    ),
    "MC0108": Rule(
        "--use-rotary-position-embeddings contradicts --position-embedding-type none",
        "The first asks for rotary positions, the second for no positions.",
        "Keep one of them.",
    ),
    "MC0109": Rule(
        "There is one scaling of rotary positions",
        "`--use-rope-scaling` is that of Llama 3.1, `--rotary-seq-len-interpolation-factor` is "
        "linear, and `--rope-scaling-type` names any.",
        "Keep one of them.",
    ),
    "MC0110": Rule(
        "--rope-scaling-type needs rotary positions",
        "It stretches their wavelengths; other positions have none.",
        "Add `--position-embedding-type rope`, or remove the scaling.",
    ),
    "MC0111": Rule(
        "The scaling of rotary positions needs another setting",
        "yarn and longrope start from the length of the first training, and longrope has a "
        "divisor for each pair of rotated channels (kv channels * `--rotary-percent` / 2).",
        "Give it; `config.json` of a Hugging Face model has it under rope_scaling.",
    ),
    "MC0112": Rule(
        "The bounds of the scaling are in the wrong order",
        "Channels between the two bounds are blended, so the bound of fast channels must be the "
        "larger one.",
        "Exchange or correct the two.",
    ),
    "MC0113": Rule(
        "The window of attention cannot be read",
        "`--window-size 4095,0` lets a token see itself and the 4095 before it. "
        "`--window-attn-skip-freq 6` leaves every sixth layer without the window; a list such as "
        "`[1,1,0]` names each layer.",
        "Write it in one of these forms.",
    ),
    "MC0114": Rule(
        "The flag needs --window-size",
        "It is about the layers that have a window, and none has.",
        "Add `--window-size`, or remove the flag.",
    ),
    "MC0115": Rule(
        "--use-parallel-residual contradicts --apply-residual-connection-post-layernorm",
        "With the first attention and MLP have one residual, which is not behind two norms.",
        "Keep one of them.",
    ),
    "MC0116": Rule(
        "Ring attention computes plain causal scores only",
        "With `--cp-comm-type p2p` keys travel between context-parallel processes in blocks, whose "
        "attention knows no window, no cap and no other scale.",
        "Use `--cp-comm-type a2a`, where each process has whole sequences of some heads.",
    ),
    "MC0117": Rule(
        "LongRoPE needs whole sequences",
        "Its angles depend on the length of the sequence, of which a context-parallel process "
        "knows a part.",
        "Use `--context-parallel-size 1`.",
    ),
    # Recompute.
    "MC0151": Rule(
        "--recompute-granularity full needs --recompute-method and --recompute-num-layers",
        "Full recompute keeps only the inputs of groups of layers (uniform) or recomputes the "
        "first layers (block); both need the number.",
        "Give both, or use `--recompute-activations` (selective), which needs neither.",
    ),
    "MC0152": Rule(
        "Selective recompute takes no --recompute-method and no --recompute-num-layers",
        "It recomputes the core attention of every layer.",
        "Remove them, or use `--recompute-granularity full`.",
    ),
    "MC0153": Rule(
        "--recompute-activations means --recompute-granularity selective",
        "It was given together with `--recompute-granularity full`.",
        "Keep one of them.",
    ),
    "MC0154": Rule(
        "--recompute-method and --recompute-num-layers need --recompute-granularity full",
        "Without a granularity nothing is recomputed, and the memory that was to be saved is not.",
        "Add `--recompute-granularity full`, or remove them.",
    ),
    # Batches and length of the run.
    "MC0201": Rule(
        "--global-batch-size must be a multiple of --micro-batch-size",
        "A step is a whole number of micro-batches (times the number of data-parallel replicas).",
        "Change one of the two. `--decrease-batch-size-if-needed` rounds the running batch down.",
    ),
    "MC0202": Rule(
        "--global-batch-size must not be smaller than one micro-batch",
        "Rounded down it would be no sequence at all.",
        "Lower `--micro-batch-size` or raise `--global-batch-size`.",
    ),
    "MC0203": Rule(
        "--rampup-batch-size takes three numbers: START INCREMENT SAMPLES",
        "The batch grows from START by INCREMENT up to the global batch over SAMPLES samples. "
        "START and INCREMENT must be positive.",
        "Give three integers, for example `--rampup-batch-size 16 16 5859375`.",
    ),
    "MC0204": Rule(
        "--rampup-batch-size needs sample-based training",
        "While the batch grows an iteration is not a fixed number of samples, so a run (and its "
        "learning-rate schedule) counted in iterations is not defined. The widely copied example "
        "for 175 billion parameters has exactly this mistake.",
        "Replace `--train-iters`, `--lr-decay-iters` and `--lr-warmup-iters` by "
        "`--train-samples`, `--lr-decay-samples` and `--lr-warmup-samples`.",
    ),
    "MC0205": Rule(
        "The ramp-up must reach the global batch size in whole increments",
        "START must be below `--global-batch-size`, and the difference a multiple of INCREMENT.",
        "Change START, INCREMENT or `--global-batch-size`.",
    ),
    "MC0206": Rule(
        "START and INCREMENT of the ramp-up must be multiples of --micro-batch-size",
        "Every batch on the way is a whole number of micro-batches.",
        "Change them, or allow rounding down with `--decrease-batch-size-if-needed`.",
    ),
    "MC0211": Rule(
        "Give either --train-iters or --train-samples",
        "Both name the length of the run; with neither it has no end.",
        "Keep one of them (`--skip-train` needs none).",
    ),
    "MC0212": Rule(
        "--train-samples must be at least one global batch",
        "With fewer samples there is not a single step.",
        "Raise `--train-samples` or lower `--global-batch-size`.",
    ),
    # Learning rate.
    "MC0301": Rule(
        "--min-lr must not be greater than the learning rate",
        "It is the floor that the schedule decays to (`--decoupled-min-lr` likewise).",
        "Lower it.",
    ),
    "MC0302": Rule(
        "A run counted in iterations cannot have schedules counted in samples",
        "`--train-iters` was given, and with it `--lr-decay-samples`, `--lr-warmup-samples` or "
        "`--lr-wsd-decay-samples`.",
        "Use the `-iters` flag of the same name, or train by `--train-samples`.",
    ),
    "MC0303": Rule(
        "A run counted in samples cannot have schedules counted in iterations",
        "`--train-samples` was given, and with it `--lr-decay-iters`, `--lr-warmup-iters` or "
        "`--lr-wsd-decay-iters`.",
        "Use the `-samples` flag of the same name, or train by `--train-iters`.",
    ),
    "MC0304": Rule(
        "--lr-warmup-fraction excludes an explicit length of the warm-up",
        "Both name the length of the warm-up.",
        "Keep one of them.",
    ),
    "MC0305": Rule(
        "The warm-up must be shorter than the decay",
        "The learning rate would still be rising when the schedule ends. The decay is "
        "`--lr-decay-iters` or `--lr-decay-samples`, by default the whole run.",
        "Shorten the warm-up or lengthen the decay.",
    ),
    "MC0306": Rule(
        "--lr-warmup-init must not be greater than --lr",
        "The warm-up starts there and rises to the peak.",
        "Lower it.",
    ),
    "MC0307": Rule(
        "--lr-decay-style WSD needs the length of its last phase",
        "Warm-up, stable, decay: the schedule must know how long the decay is, and it must fit "
        "into the decay horizon.",
        "Give `--lr-wsd-decay-iters` or `--lr-wsd-decay-samples`.",
    ),
    "MC0308": Rule(
        "The two flags for the schedule of a resumed run exclude each other",
        "`--override-opt_param-scheduler` takes it from the command line, "
        "`--use-checkpoint-opt_param-scheduler` from the checkpoint.",
        "Keep one of them.",
    ),
    "MC0309": Rule(
        "--decoupled-min-lr needs --decoupled-lr",
        "It is the floor of a learning rate that is not used.",
        "Give `--decoupled-lr` too, or remove it.",
    ),
    # Optimizer.
    "MC0401": Rule(
        "Constant weight decay takes no --start-weight-decay and no --end-weight-decay",
        "`--weight-decay` alone says it; the other two would be ignored.",
        "Remove them, or choose `--weight-decay-incr-style linear` or `cosine`.",
    ),
    "MC0402": Rule(
        "A growing weight decay needs --start-weight-decay and --end-weight-decay",
        "`--weight-decay-incr-style` linear and cosine move from the first to the second.",
        "Give both.",
    ),
    "MC0403": Rule(
        "--end-weight-decay must not be less than --start-weight-decay",
        "The weight decay can only grow.",
        "Exchange or correct the two.",
    ),
    # Precision.
    "MC0501": Rule(
        "--fp16 and --bf16 exclude each other",
        "Parameters have one dtype.",
        "Keep one of them.",
    ),
    "MC0502": Rule(
        "--fp16-lm-cross-entropy needs --fp16",
        "In other dtypes the loss is always computed in fp32.",
        "Add `--fp16` or remove it.",
    ),
    "MC0503": Rule(
        "--fp32-residual-connection needs --fp16 or --bf16",
        "In fp32 the residual stream is fp32 already.",
        "Remove it, or train in half precision.",
    ),
    "MC0504": Rule(
        "--initial-loss-scale must not be less than --min-loss-scale",
        "The dynamic loss scale starts at the first and never falls below the second.",
        "Correct one of them.",
    ),
    # Data and tokenizers.
    "MC0601": Rule(
        "Give exactly one source of data",
        "One of `--data-path`; `--train-data-path` and its companions; `--mock-data`.",
        "Keep one of them.",
    ),
    "MC0602": Rule(
        "--seq-length and --encoder-seq-length name the same thing",
        "For a decoder-only model either may be given.",
        "Keep `--seq-length`.",
    ),
    "MC0603": Rule(
        "--seq-length must not be greater than --max-position-embeddings",
        "Positions beyond the table do not exist.",
        "Raise `--max-position-embeddings` or lower `--seq-length`.",
    ),
    "MC0604": Rule(
        "--split must be up to three proportions",
        "Training, validation and test as numbers, such as `969,30,1`; at least one is positive.",
        "Correct the text.",
    ),
    "MC0605": Rule(
        "--split has no meaning with paths per split",
        "`--train-data-path`, `--valid-data-path` and `--test-data-path` use each dataset whole.",
        "Remove `--split`.",
    ),
    "MC0606": Rule(
        "The blend mixes paths with weights and paths without",
        "A list of paths is either paths alone, or weight and path in turn.",
        "Give a weight before every path, or before none.",
    ),
    "MC0607": Rule(
        "Training needs --train-data-path",
        "Paths per split were given, but none for training.",
        "Add `--train-data-path`, or use `--skip-train` to evaluate only.",
    ),
    "MC0611": Rule(
        "The tokenizer needs another file or setting",
        "Each `--tokenizer-type` reads its own files: GPT2BPETokenizer `--vocab-file` and "
        "`--merge-file`, BertWordPiece `--vocab-file`, NullTokenizer `--vocab-size`, the others "
        "`--tokenizer-model`.",
        "Give the named flag.",
    ),
    "MC0612": Rule(
        "--tiktoken-special-tokens must contain <unk>, <s> and </s>",
        "They mark unknown text, the begin and the end of a document.",
        "Add the missing ones.",
    ),
    # Checkpoints.
    "MC0701": Rule(
        "--save needs --save-interval",
        "Without it nothing would be saved before the end of the run.",
        "Give the number of iterations between two checkpoints.",
    ),
    "MC0702": Rule(
        "The flag needs a checkpoint to load",
        "Without `--load` (or `--pretrained-checkpoint`) the run would start from random weights.",
        "Give `--load DIR`, or remove the flag.",
    ),
    "MC0730": Rule(
        "--save-retain-interval must be a multiple of --save-interval",
        "No checkpoint is written at the other iterations, so none of those could be kept.",
        "Give a multiple.",
    ),
    "MC0731": Rule(
        "--non-persistent-global-ckpt-dir must not be the directory of --save or --load",
        "Of non-persistent checkpoints only the newest is kept: each save would remove the "
        "checkpoints that are to stay.",
        "Name another directory, or leave the flag out: then it is non_persistent in `--save`.",
    ),
    "MC0750": Rule(
        "A conversion needs a checkpoint, a format and a place",
        "`--ckpt-convert-format F --ckpt-convert-save D` loads the checkpoint of `--load`, writes "
        "it to `D/F` in the format F, and exits.",
        "Give `--load`, `--ckpt-convert-format` and `--ckpt-convert-save`, or only the first.",
    ),
    "MC0751": Rule(
        "The format `torch` cannot hold this",
        "Megatron-LM's format has a place for a whole model and its optimizer, written while "
        "training waits: not for adapters alone, and not for saving in the background.",
        "Use `--ckpt-format torch_dist`, or leave the other flag out.",
    ),
    # Logging and profiling.
    "MC0801": Rule(
        "--wandb-project needs --wandb-exp-name",
        "A run in the project needs a name.",
        "Give the name.",
    ),
    "MC0802": Rule(
        "--profile-step-end must be greater than --profile-step-start",
        "The window would be empty, and nothing profiled.",
        "Correct one of them.",
    ),
    **PARALLEL_RULES,
    **CONVERT_RULES,
    **FINETUNE_RULES,
    **KERNEL_RULES,
    **SENTENCE_RULES,
    **ENCODER_RULES,
    **EVALUATION_RULES,
    **PLANNING_RULES,
}


def fault(
    fault_id: str, given: Mapping[str, object] | None = None, *, allowed: str = "", more: str = ""
) -> Fault:
    """A fault of the registry.

    Args:
        fault_id: Its id, such as "MC0101".
        given: Flag name -> the value that was given.
        allowed: What would be accepted.
        more: What this case adds to the rule.

    Raises:
        KeyError: There is no such id (a programming mistake).
    """
    rule = RULES[fault_id].title
    return Fault(fault_id, f"{rule}: {more}" if more else rule, dict(given or {}), allowed)


def required(flag: str) -> Fault:
    """The fault of a required setting that nothing set."""
    return fault("MC0101", {flag: "(not given)"}, more=flag)
