// Time of one product of matrices.
//
// A GPU computes tiles of the result, one per multiprocessor at a time, each in a loop over the
// inner dimension. So the time is quantised: by the tiles at the edges, by the last wave of tiles,
// and by the beginning and end of each loop. A library has several sizes of tiles; smaller ones
// reach less of the peak but waste less, and the best one is taken. (NVIDIA, "Matrix Multiplication
// Background User's Guide", sections 3 and 4.)
#include <algorithm>
#include <array>
#include <cmath>

#include "planner/block_cost.h"

namespace megacore::planner {
namespace {

struct Tile {
    double rows;  // relative to the largest tile
    double cols;
    double relative;  // share of the largest tile's rate
};

constexpr std::array<Tile, 5> kTiles{
    {{1.0, 1.0, 1.0}, {2.0, 0.5, 1.0}, {1.0, 0.5, 0.92}, {0.5, 0.5, 0.75}, {0.5, 0.25, 0.6}}};

/// Share of the multiprocessors' time that is spent on the result that was asked for, best tile.
double tile_share(const Hardware& hardware, double rows, double cols) {
    if (hardware.num_units == 0) return 1.0;
    double best = 0.0;
    for (const Tile& tile : kTiles) {
        const double tile_rows = tile.rows * hardware.tile_rows;
        const double tile_cols = tile.cols * hardware.tile_cols;
        const double tiles = std::ceil(rows / tile_rows) * std::ceil(cols / tile_cols);
        // Multiprocessors hold as many small tiles at once as have the area of a large one.
        const double at_once = hardware.num_units / std::min(1.0, tile.rows * tile.cols);
        const double waves = std::ceil(tiles / at_once);
        const double covered = waves * at_once * tile_rows * tile_cols;
        best = std::max(best, tile.relative * rows * cols / covered);
    }
    return best;
}

}  // namespace

double matmul_time(const Hardware& hardware,
                   double rows,
                   double cols,
                   double inner,
                   int dtype_bytes,
                   bool accumulates) {
    if (rows <= 0.0 || cols <= 0.0 || inner <= 0.0) return 0.0;
    double share = hardware.matmul_efficiency * tile_share(hardware, rows, cols) * inner /
                   (inner + hardware.matmul_half_k);
    if (accumulates) share *= hardware.weight_grad_efficiency;
    const double compute = 2.0 * rows * cols * inner / (hardware.peak_flops * share);
    const double result_bytes = accumulates ? 8.0 : dtype_bytes;
    const double bytes = dtype_bytes * inner * (rows + cols) + result_bytes * rows * cols;
    return std::max(compute, bytes / hardware.memory_rate);
}

}  // namespace megacore::planner
