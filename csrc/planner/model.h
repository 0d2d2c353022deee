/// The transformer to plan for, as far as it costs time and memory. Integers only.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/buckets.h"

namespace megacore::planner {

/// B sequences of `seq_length` tokens run through `layers` equal layers (decoder-only, or
/// bidirectional with `causal` false); an encoder-decoder has `decoder_layers` more, with cross
/// attention, that work on `decoder_length` tokens.
struct Model {
    int layers = 1;
    std::int64_t hidden = 1;
    std::int64_t ffn = 4;
    std::int64_t heads = 1;
    std::int64_t groups = 1;
    std::int64_t head_width = 1;
    std::int64_t vocab = 1;  ///< Before padding.
    std::int64_t vocab_divisor = 128;
    std::int64_t seq_length = 1;
    std::int64_t learned_positions = 0;  ///< Rows of the position embedding; 0: none.
    int decoder_layers = 0;
    std::int64_t decoder_length = 0;
    bool gated = false;
    bool untied = false;
    bool linear_bias = true;
    bool qkv_bias = true;
    bool norm_bias = true;
    bool dropout = true;  ///< Of hidden states.
    bool causal = true;
    bool fused_loss = true;       ///< Cross entropy that makes no fp32 copies of the logits.
    bool flash = true;            ///< Attention that keeps no scores.
    bool half_gradients = false;  ///< Gradients are summed in the dtype of the parameters.
    int dtype_bytes = 2;

    std::int64_t query_width() const { return heads * head_width; }
    std::int64_t key_width() const { return groups * head_width; }
    int mlp_inputs() const { return gated ? 2 : 1; }
    int total_layers() const { return layers + decoder_layers; }
    /// Rows of the word embedding: a multiple of vocab_divisor * tensor.
    std::int64_t padded_vocab(int tensor) const;
};

/// What one pipeline stage holds.
struct StageContent {
    int layers = 0;
    bool has_embedding = false;
    bool has_output = false;

    friend bool operator==(const StageContent&, const StageContent&) = default;
};

/// The parameters of a stage on one tensor-parallel rank, in the order of the model. Treatment
/// (comm::BucketParam::key): 0 with weight decay, 1 without. A tied word embedding is alone.
///
/// @param tied_apart  first and last stage are on different ranks, so both hold the word embedding
std::vector<comm::BucketParam> stage_parameters(const Model& model,
                                                const StageContent& stage,
                                                int tensor,
                                                bool tied_apart);

/// Elements of all parameters.
std::int64_t count_parameters(const Model& model);

/// Floating-point operations of forward and backward of `batch` sequences, without recompute:
/// products of matrices only, two per multiply-add, backward twice forward.
///
/// @param full_attention  count the masked half of causal attention too, as the established
///                        throughput formula does
double training_flops(const Model& model, double batch, bool full_attention);

}  // namespace megacore::planner
