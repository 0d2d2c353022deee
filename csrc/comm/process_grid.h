/// Which ranks of a run work together: the arrangement of all processes along the axes of
/// parallelism. Integers only; no process communicates here.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace megacore::comm {

/// Numbers of parts along the axes of parallelism.
///
/// The data-parallel degree is not given: it is what is left of the world.
struct Degrees {
    int tensor = 1;
    int context = 1;
    int pipeline = 1;
    int expert = 1;
    /// Parts of each expert's matrices; 0 means `tensor`.
    int expert_tensor = 0;
};

/// Tensor parallelism varies fastest (neighbouring ranks, which share the fastest links), pipeline
/// parallelism slowest.
inline constexpr std::string_view kDefaultOrder = "tp-cp-ep-dp-pp";

/// The processes of a run on a grid, seen in two ways that share the pipeline axis:
///
///  - for everything but experts: tp x cp x dp x pp, with dp = world / (tp * cp * pp);
///  - for experts: etp x ep x edp x pp, with edp = world / (etp * ep * pp): the expert axes are
///    carved from the replicas (and from cp) of a stage. Where experts are used, pp has to mean the
///    same ranks in both views.
///
/// `order` lists the axes, the one that varies fastest from rank to rank first: a permutation of
/// tp, cp, ep, dp and pp joined by "-"; axes of degree 1 may be left out. In the second view etp
/// and edp take the places of tp and dp.
class ProcessGrid {
public:
    /// Throws megacore::Error that names the degrees that do not divide the world, or what is wrong
    /// with the order.
    ProcessGrid(int world_size, const Degrees& degrees, std::string_view order = kDefaultOrder);

    int world_size() const { return world_size_; }

    /// Number of parts along an axis: "tp", "cp", "dp", "pp", "etp", "ep" or "edp".
    int degree(std::string_view axis) const;

    /// Place of a rank along an axis, 0 to degree - 1.
    int coordinate(std::string_view axis, int rank) const;

    /// Ranks that differ from `rank` in the given axes only, ascending and including it. `axes` are
    /// axes of one view joined by "-", such as "tp" or "dp-cp".
    std::vector<int> group(std::string_view axes, int rank) const;

    /// All groups of these axes, ordered by their first ranks: a partition of the world.
    std::vector<std::vector<int>> groups(std::string_view axes) const;

    /// Ranks of the pipeline of `rank` that are at the given places along pp, ascending: those that
    /// hold a copy of the same parameters, such as the tied word embedding. Only `rank` itself when
    /// its own place is not among them. Repeated places count once.
    std::vector<int> pipeline_group(const std::vector<int>& places, int rank) const;

private:
    struct Axis {
        std::string name;
        int degree;
        int stride;
    };
    using View = std::vector<Axis>;

    View make_view(const std::vector<std::string>& order,
                   const std::vector<std::pair<std::string, int>>& degrees) const;
    const Axis& find(std::string_view name) const;
    std::vector<const Axis*> select(std::string_view axes) const;
    void check_rank(int rank) const;

    int world_size_;
    View dense_;
    View expert_;
};

}  // namespace megacore::comm
