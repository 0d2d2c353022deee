/// Adds up the operations of one part of a model.
#pragma once

#include <string>

#include "planner/block_cost.h"

namespace megacore::planner {

/// Widths are per token and process; times, bytes and traffic of a whole micro-batch add up.
class BlockBuilder {
public:
    BlockBuilder(const Model& model,
                 const Layout& layout,
                 const Hardware& hardware,
                 double tokens,
                 bool with_ops);

    const Model& model() const { return model_; }
    double tensor() const { return layout_.tensor; }
    int tensor_size() const { return layout_.tensor; }
    double tokens() const { return tokens_; }
    /// Share of the tokens outside of the products that a process has.
    double split() const { return layout_.sequence_parallel ? 1.0 / layout_.tensor : 1.0; }

    /// A norm of the residual stream.
    void norm();
    /// The product with columns of a matrix, (inner x cols), with the communication around it.
    void column(const char* name, double inner, double cols);
    /// The same for other tokens, `ratio` times as many, whose input somebody else keeps.
    void side_column(const char* name, double inner, double cols, double ratio);
    /// The product with rows of a matrix, (inner x cols).
    void row(const char* name, double inner, double cols);
    /// Core attention of `length` queries of each sequence to `source` keys.
    void attention(const char* name, double length, double source, bool causal);
    /// A kernel that moves so many elements per token in forward and in backward.
    void pointwise(const char* name, double forward_elements, double backward_elements);
    /// Bias, dropout and addition to the residual stream.
    void residual();
    /// The sum of the parts of the word embedding.
    void scattered_sum();
    /// The sums of the loss over parts of the vocabulary.
    void loss_sums();

    /// Activations that stay until backward, bytes per token.
    void keep(double bytes_per_token);
    /// Bytes that a pass uses for a while.
    void transient(double bytes);

    BlockCost take();

private:
    double memory_time(double elements, double extra_bytes_per_token = 0.0) const;
    void record(
        const char* name, const char* category, double forward, double input, double weight);
    void launch(int forward, int input, int weight);
    void hide(PassTime& pass, double communication, double compute);
    void context_exchange(double forward_compute, double backward_compute);
    double full_bytes() const;

    const Model& model_;
    const Layout& layout_;
    const Hardware& hardware_;
    double tokens_;
    bool with_ops_;
    GroupPlace tensor_place_;
    double gather_s_ = 0.0;  // of the residual stream over the tensor-parallel group
    double reduce_s_ = 0.0;
    BlockCost cost_;
};

}  // namespace megacore::planner
