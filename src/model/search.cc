#include "model/search.h"

#include <algorithm>

#include "model/progress.h"

namespace peplos::model {

namespace {

uint64_t hash_of(const Encoded& bytes) {
    uint64_t hash = 0x9e3779b97f4a7c15ULL ^ bytes.size();
    for (size_t at = 0; at < bytes.size(); at += 8) {
        uint64_t word = 0;
        std::copy_n(bytes.data() + at, std::min<size_t>(8, bytes.size() - at),
                    reinterpret_cast<uint8_t*>(&word));
        hash = mix_bits(hash ^ mix_bits(word + at));
    }
    return hash == 0 ? 1 : hash;
}

// Hashes that were seen.
class Seen {
  public:
    Seen() : table_(1 << 16, 0) {}
    // False: it was there.
    bool add(uint64_t hash) {
        if (2 * ++count_ > table_.size()) grow();
        bool is_new = place(table_, hash);
        if (!is_new) --count_;
        return is_new;
    }

  private:
    static bool place(std::vector<uint64_t>& table, uint64_t hash) {
        for (size_t at = hash & (table.size() - 1);; at = (at + 1) & (table.size() - 1)) {
            if (table[at] == hash) return false;
            if (table[at] != 0) continue;
            table[at] = hash;
            return true;
        }
    }
    void grow() {
        std::vector<uint64_t> larger(table_.size() * 2, 0);
        for (uint64_t hash : table_) {
            if (hash != 0) place(larger, hash);
        }
        table_ = std::move(larger);
    }

    std::vector<uint64_t> table_;
    size_t count_ = 0;
};

// States of one depth, one after the other.
struct Level {
    Encoded bytes;
    std::vector<size_t> begins;
    void add(const Encoded& state) {
        begins.push_back(bytes.size());
        bytes.insert(bytes.end(), state.begin(), state.end());
    }
};

class Search {
  public:
    Search(const Scope& scope, const SearchOptions& options)
        : scope_(scope), options_(options), post_({scope.promise_ticks, 0}) {}

    SearchReport run() {
        Encoded bytes;
        World::first(scope_).encode(scope_, bytes);
        seen_.add(hash_of(bytes));
        ways_.push_back({0, {}});
        next_.add(bytes);
        uint32_t first = 0;
        while (!next_.begins.empty() && report_.problem.empty()) {
            Level level = std::exchange(next_, {});
            for (size_t i = 0; i < level.begins.size() && report_.problem.empty(); ++i)
                expand(level.bytes.data() + level.begins[i], first + static_cast<uint32_t>(i));
            first += static_cast<uint32_t>(level.begins.size());
            if (!next_.begins.empty()) ++report_.depth;
            if (ways_.size() > options_.states_max) {
                report_.is_complete = false;
                break;
            }
        }
        report_.states = ways_.size();
        report_.messages = post_.size();
        return std::move(report_);
    }

  private:
    struct Way {
        uint32_t from;
        Step step;
    };

    void expand(const uint8_t* bytes, uint32_t index) {
        const World world = World::decode(scope_, bytes);
        if (options_.progress_every != 0 && index % options_.progress_every == 0) {
            ++report_.progress_checks;
            std::string problem = check_progress(scope_, post_, world, nullptr);
            if (!problem.empty()) return fail(problem, index, nullptr);
        }
        world.list_steps(scope_, post_, steps_);
        for (const Step& step : steps_) {
            ++report_.steps;
            World after = world;
            after.apply(scope_, post_, step);
            if (!after.problem().empty()) return fail(after.problem(), index, &step);
            scratch_.clear();
            after.encode(scope_, scratch_);
            if (!seen_.add(hash_of(scratch_))) continue;
            ways_.push_back({index, step});
            next_.add(scratch_);
        }
    }

    void fail(const std::string& problem, uint32_t index, const Step* last) {
        report_.problem = problem;
        Steps path;
        if (last != nullptr) path.push_back(*last);
        for (; index != 0; index = ways_[index].from)
            path.push_back(ways_[index].step);
        std::ranges::reverse(path);
        World world = World::first(scope_);
        std::vector<std::string>& trace = report_.trace;
        for (size_t i = 0; i < path.size(); ++i) {
            trace.push_back(fmt::format("{:3}. {}", i + 1, world.describe(post_, path[i])));
            world.narrate(&trace);
            world.apply(scope_, post_, path[i]);
        }
        if (last != nullptr) return;
        trace.emplace_back("then all faults end:");
        check_progress(scope_, post_, world, &trace);
    }

    const Scope& scope_;
    const SearchOptions& options_;
    Post post_;
    Seen seen_;
    std::vector<Way> ways_;
    Level next_;
    Steps steps_;
    Encoded scratch_;
    SearchReport report_;
};

}  // namespace

SearchReport search(const Scope& scope, const SearchOptions& options) {
    return Search(scope, options).run();
}

}  // namespace peplos::model
