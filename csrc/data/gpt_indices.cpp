#include "data/gpt_indices.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <numeric>
#include <thread>

#include "data/fault.h"
#include "data/huge_buffer.h"

namespace megacore::data {
namespace {

using Int128 = __int128;

// Documents whose lengths are fetched ahead of the walk over the shuffled document index, into the
// second-level cache: that one can have many more misses under way than the first.
constexpr std::int64_t kAhead = 128;

std::int64_t to_int64(Int128 value, const GptRequest& request, const char* what) {
    if (value > INT64_MAX) {
        fault(request.name, ": the number of ", what, " exceeds 2^63 - 1; ask for fewer samples");
    }
    return static_cast<std::int64_t>(value);
}

/// Partial last samples are counted in single precision by definition of the file format.
std::int64_t count_with_partial(std::int64_t tokens, std::int64_t sequence_length) {
    return static_cast<std::int64_t>(
        std::ceil(static_cast<float>(tokens) / static_cast<float>(sequence_length)));
}

void fill_epochs(std::span<std::int32_t> out, std::int64_t first, std::int64_t documents) {
    for (std::size_t begin = 0; begin < out.size(); begin += static_cast<std::size_t>(documents)) {
        const auto epoch = out.subspan(begin, static_cast<std::size_t>(documents));
        std::iota(epoch.begin(), epoch.end(), static_cast<std::int32_t>(first));
    }
}

void build_document_index(const GptPlan& plan, RandomState& random, std::span<std::int32_t> out) {
    const std::int64_t documents = plan.request.last_document - plan.request.first_document;
    fill_epochs(out, plan.request.first_document, documents);
    if (plan.separate_final_epoch) {
        const auto body = out.size() - static_cast<std::size_t>(documents);
        random.shuffle(out.first(body));
        random.shuffle(out.subspan(body));
    } else {
        random.shuffle(out);
    }
}

template <class T>
void build_shuffle_index(const GptPlan& plan, RandomState& random, std::span<T> out) {
    std::iota(out.begin(), out.end(), T{0});
    if (plan.separate_final_epoch) {
        const auto body = static_cast<std::size_t>(plan.samples_before_final);
        random.shuffle(out.first(body));
        random.shuffle(out.subspan(body));
    } else {
        random.shuffle(out);
    }
}

/// Row r > 0 is where token r * S of the concatenated documents lies: the last token of sample
/// r - 1 is the first of sample r. So one pass over the documents emits each row as its token
/// goes by; `lengths` need not be read more than once per document.
/// @param lengths  callable: document -> address of its length
template <class Lengths>
void build_sample_index(const GptPlan& plan,
                        std::span<const std::int32_t> documents,
                        const Lengths& lengths,
                        std::span<std::int64_t> out) {
    const std::int64_t step = plan.request.sequence_length;
    const std::int64_t rows = plan.num_samples + 1;
    const auto count = static_cast<std::int64_t>(documents.size());
    std::int64_t* row = out.data();
    std::int64_t* const end_row = row + 2 * rows;
    row[0] = 0;
    row[1] = 0;
    row += 2;
    std::int64_t start = 0;    // token number at which the document starts
    std::int64_t next = step;  // token number of the row to emit
    for (std::int64_t p = 0; p < count && row < end_row; ++p) {
        __builtin_prefetch(lengths.address(documents[std::min(p + kAhead, count - 1)]), 0, 2);
        const std::int64_t end = start + lengths[documents[p]];
        // Most documents are shorter than a sample. Whether one holds a row is a coin toss, so the
        // row is written in any case and kept without a branch.
        row[0] = p;
        row[1] = next - start;
        const bool kept = next < end;
        row += kept ? 2 : 0;
        next += kept ? step : 0;
        while (next < end && row < end_row) {
            row[0] = p;
            row[1] = next - start;
            row += 2;
            next += step;
        }
        start = end;
    }
    // A partial last sample ends with the last document (only without drop_last).
    const std::int64_t last = lengths[documents[count - 1]] - plan.request.extra_tokens;
    for (; row < end_row; row += 2) {
        row[0] = count - 1;
        row[1] = last;
    }
}

/// Lengths as the .idx file has them.
struct FileLengths {
    const UnalignedArray<std::int32_t>& array;
    const void* address(std::int32_t document) const {
        return array.bytes() + 4 * static_cast<std::int64_t>(document);
    }
    std::int64_t operator[](std::int32_t document) const { return array[document]; }
};

/// A table of half the size, which the processor's caches hold more of.
struct NarrowLengths {
    HugeBuffer<std::uint16_t> table;
    std::int32_t first;
    const void* address(std::int32_t document) const { return table.data() + (document - first); }
    std::int64_t operator[](std::int32_t document) const {
        return table[static_cast<std::size_t>(document - first)];
    }
};

/// The table is made when all lengths fit and it takes little memory beside the results.
std::optional<NarrowLengths> narrow(const GptPlan& plan,
                                    const UnalignedArray<std::int32_t>& lengths) {
    const std::int64_t first = plan.request.first_document;
    const std::int64_t count = plan.request.last_document - first;
    const std::int64_t results = 4 * plan.document_index_size + 20 * plan.num_samples;
    if (count < (1 << 16) || 2 * count > results / 4) return std::nullopt;
    NarrowLengths narrow{HugeBuffer<std::uint16_t>(static_cast<std::size_t>(count)),
                         static_cast<std::int32_t>(first)};
    std::int32_t all = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int32_t length = lengths[first + i];
        all |= length;
        narrow.table[static_cast<std::size_t>(i)] = static_cast<std::uint16_t>(length);
    }
    if (all < 0 || all > UINT16_MAX) return std::nullopt;
    return narrow;
}

}  // namespace

std::int64_t count_tokens(const UnalignedArray<std::int32_t>& lengths,
                          std::int64_t first,
                          std::int64_t last) {
    std::int64_t total = 0;
    for (std::int64_t i = first; i < last; ++i) total += lengths[i];
    return total;
}

GptPlan plan_gpt_indices(const GptRequest& request) {
    const std::int64_t documents = request.last_document - request.first_document;
    const std::int64_t tokens = request.tokens_per_epoch;
    const std::int64_t step = request.sequence_length;
    const std::int64_t extra = request.extra_tokens;
    if (step < 1) fault(request.name, ": expected a sequence length of at least 1, found ", step);
    if (documents < 1) fault(request.name, ": the split has no documents");
    if (tokens < 1) fault(request.name, ": none of the ", documents, " documents has a token");
    if (request.last_document > INT32_MAX) {
        fault(request.name, ": expected at most 2^31 - 1 documents, found ", request.last_document);
    }

    GptPlan plan;
    plan.request = request;
    if (request.num_samples) {
        const std::int64_t asked = *request.num_samples;
        if (asked < 0) fault(request.name, ": expected a number of samples >= 0, found ", asked);
        const Int128 needed = static_cast<Int128>(asked) * step + extra;
        const Int128 epochs = std::max<Int128>(1, (needed + tokens - 1) / tokens);
        plan.num_epochs = to_int64(epochs, request, "epochs");
    }
    const Int128 total = static_cast<Int128>(plan.num_epochs) * tokens - extra;
    const std::int64_t usable = to_int64(total, request, "tokens");
    plan.document_index_size =
        to_int64(static_cast<Int128>(plan.num_epochs) * documents, request, "documents");
    plan.num_samples = request.drop_last ? usable / step : count_with_partial(usable, step);
    if (plan.num_samples < 1) {
        fault(request.name,
              ": ",
              tokens,
              " tokens in ",
              documents,
              " documents are less than one sample of ",
              step,
              " + ",
              extra,
              " tokens; use a shorter sequence length, more data or another split");
    }
    if (plan.num_epochs > 1) {
        const std::int64_t before =
            std::max<std::int64_t>(0, usable - tokens) / step;  // ((E - 1) * T - x) // S
        const std::int64_t last = *request.num_samples - before;
        const std::int64_t per_epoch = (tokens - extra) / step;
        plan.separate_final_epoch =
            last < static_cast<std::int64_t>(0.80 * static_cast<double>(per_epoch));
        if (plan.separate_final_epoch) plan.samples_before_final = before;
    }
    plan.wide_shuffle_index = plan.num_samples >= static_cast<std::int64_t>(UINT32_MAX) - 1;
    return plan;
}

void build_gpt_indices(const GptPlan& plan,
                       const UnalignedArray<std::int32_t>& lengths,
                       std::uint32_t seed,
                       int num_threads,
                       const GptIndices& out) {
    MEGACORE_CHECK(plan.request.last_document <= lengths.size(), "documents beyond the dataset");
    MEGACORE_CHECK(
        static_cast<std::int64_t>(out.document_index.size()) == plan.document_index_size &&
            static_cast<std::int64_t>(out.sample_index.size()) == 2 * (plan.num_samples + 1) &&
            static_cast<std::int64_t>(plan.wide_shuffle_index
                                          ? out.wide_shuffle_index.size()
                                          : out.shuffle_index.size()) == plan.num_samples,
        plan.request.name,
        ": output sizes differ from the plan");
    RandomState random(seed);
    build_document_index(plan, random, out.document_index);

    const auto build_samples = [&] {
        if (const auto table = narrow(plan, lengths)) {
            build_sample_index(plan, out.document_index, *table, out.sample_index);
        } else {
            build_sample_index(plan, out.document_index, FileLengths{lengths}, out.sample_index);
        }
    };
    const auto build_shuffle = [&] {
        if (plan.wide_shuffle_index) {
            build_shuffle_index(plan, random, out.wide_shuffle_index);
        } else {
            build_shuffle_index(plan, random, out.shuffle_index);
        }
    };
    if (num_threads < 2) {
        build_samples();
        build_shuffle();
        return;
    }
    std::exception_ptr failure;
    std::thread worker([&] {
        try {
            build_samples();
        } catch (...) {
            failure = std::current_exception();
        }
    });
    build_shuffle();
    worker.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace megacore::data
