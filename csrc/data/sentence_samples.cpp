#include "data/sentence_samples.h"

#include <algorithm>

#include "data/fault.h"

namespace megacore::data {

std::array<std::int64_t, 4> RowView::operator[](std::int64_t row) const {
    std::array<std::int64_t, 4> values{};
    for (std::int64_t c = 0; c < columns; ++c) {
        const auto i = static_cast<std::size_t>(row * columns + c);
        values[static_cast<std::size_t>(c)] =
            static_cast<std::int64_t>(narrow.empty() ? wide[i] : std::uint64_t{narrow[i]});
    }
    return values;
}

SentenceRows::SentenceRows(std::shared_ptr<const TokenSource> source, RowView rows)
    : source_(std::move(source)), rows_(rows) {
    if (rows_.size() < 1) fault(source_->name(), ": the sample map has no rows");
}

void SentenceRows::fault_row(std::int64_t sample, const char* what, std::int64_t value) const {
    fault(source_->name(),
          ", sample ",
          sample,
          ": ",
          what,
          " ",
          value,
          " of its sample map is out of range; delete the cached index files to build them anew");
}

std::array<std::int64_t, 4> SentenceRows::row(std::int64_t sample) const {
    if (sample < 0 || sample >= size()) {
        fault(source_->name(),
              ": expected a sample number from 0 to ",
              size() - 1,
              ", found ",
              sample);
    }
    const auto row = rows_[sample];
    if (row[0] < 0 || row[0] >= row[1]) fault_row(sample, "first sentence", row[0]);
    if (row[1] > source_->num_sequences()) fault_row(sample, "end of sentences", row[1]);
    return row;
}

void SentenceRows::read(std::int64_t first,
                        std::int64_t last,
                        std::int64_t vocab_size,
                        std::int64_t limit,
                        std::vector<std::int64_t>& out) const {
    for (std::int64_t s = first; s < last; ++s) {
        const std::size_t begin = out.size();
        const std::int64_t count =
            std::min(source_->length(s), limit - static_cast<std::int64_t>(begin));
        if (count <= 0) continue;
        out.resize(begin + static_cast<std::size_t>(count));
        source_->read(s, 0, vocab_size, {out.data() + begin, static_cast<std::size_t>(count)});
    }
}

}  // namespace megacore::data
