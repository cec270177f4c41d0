#include "model/progress.h"

#include <algorithm>
#include <bit>

namespace peplos::model {

using Kind = Step::Kind;

namespace {

constexpr unsigned kRoundsMax = 60;

}  // namespace

// A fair run: round after round all that can go on does.
class Rounds {
  public:
    Rounds(const Scope& scope, Post& post, const World& world, NodeMask silent,
           std::vector<std::string>* story)
        : scope_(scope), post_(post), world_(world), silent_(silent), story_(story) {
        // As often as needed.
        world_.budget_ = {.writes = 9,
                          .claims = 99,
                          .adoptions = 99,
                          .changes = 99,
                          .give_ups = 99,
                          .renewals = 99,
                          .ticks = 99};
        silence();
    }

    // Whether a fresh write was acknowledged by an owner that is on record.
    std::string run() {
        for (unsigned round = 0; round < kRoundsMax; ++round) {
            round_ = round;
            move_everything();
            if (!world_.problem().empty()) return world_.problem();
            if (is_served()) return {};
            act();
            if (!world_.problem().empty()) return world_.problem();
        }
        return "the volume is not served although enough copies are alive";
    }

  private:
    bool is_silent(unsigned index) const { return (silent_ >> index & 1) != 0; }

    void do_step(Step step) {
        if (story_ != nullptr) {
            story_->push_back("     " + world_.describe(post_, step));
            world_.narrate(story_);
        }
        world_.apply(scope_, post_, step);
    }

    // The silent node's owner is out of the world.
    void silence() {
        for (unsigned i = 0; i < world_.nodes_.size(); ++i) {
            if (!is_silent(i)) continue;
            Node& node = world_.nodes_[i];
            if (node.reading != 0) world_.monitor_.drop_read();
            node.reading = 0;
            node.owner = std::monostate{};
            node.queue.clear();
        }
    }

    void move_everything() {
        for (unsigned sweep = 0; sweep < 12; ++sweep) {
            Encoded before;
            world_.encode(scope_, before);
            auto sent = world_.net_;
            for (uint16_t id : sent) {
                const Envelope& envelope = post_.at(id);
                auto to = static_cast<unsigned>(envelope.to.value - 1);
                auto from = static_cast<unsigned>(envelope.from.value - 1);
                if (is_silent(to) || is_silent(from)) continue;
                do_if_well({Kind::deliver, static_cast<uint8_t>(to), id});
            }
            for (unsigned i = 0; i < world_.nodes_.size(); ++i) {
                while (is_going() && !is_silent(i) && !world_.nodes_[i].queue.empty())
                    do_if_well({Kind::finish_write, static_cast<uint8_t>(i), 0});
            }
            while (is_going() && !world_.calls_.empty()) {
                auto from = static_cast<uint8_t>(world_.calls_[0].from.value - 1);
                do_if_well({Kind::execute, from, 0});
            }
            if (!is_going()) return;
            Encoded after;
            world_.encode(scope_, after);
            if (before == after) return;
        }
    }
    bool is_going() const { return world_.problem().empty(); }
    void do_if_well(Step step) {
        if (is_going()) do_step(step);
    }

    bool is_served() const {
        for (unsigned i = 0; i < world_.nodes_.size(); ++i) {
            const replica::Ensemble* ensemble = world_.serving(i);
            if (ensemble == nullptr || is_silent(i)) continue;
            bool is_on_record = ensemble->claim() == world_.store_.record.claim;
            if (is_on_record && has_written_ && ensemble->acknowledged_lsn() >= target_)
                return true;
        }
        return false;
    }

    bool is_good(unsigned index) const {
        return !is_silent(index) && !world_.nodes_[index].is_failed;
    }
    // The node and another good one, as many as the first ensemble has where possible.
    NodeMask good_set(unsigned index) const {
        auto wanted = static_cast<unsigned>(std::popcount(scope_.first));
        auto set = static_cast<NodeMask>(1u << index);
        for (unsigned i = 0; i < world_.nodes_.size(); ++i) {
            bool is_full = static_cast<unsigned>(std::popcount(set)) >= wanted;
            if (!is_full && is_good(i)) set = static_cast<NodeMask>(set | (1u << i));
        }
        return set;
    }

    // What the nodes decide when nothing moves any more.
    void act() {
        for (unsigned i = 0; i < world_.nodes_.size(); ++i) {
            auto index = static_cast<uint8_t>(i);
            if (is_silent(i)) continue;
            if (auto* takeover = std::get_if<replica::Takeover>(&world_.nodes_[i].owner)) {
                if (takeover->may_adopt() && is_good(i)) {
                    return do_step({Kind::adopt, index, good_set(i)});
                }
                continue;
            }
            replica::Ensemble* ensemble = world_.serving(i);
            if (ensemble == nullptr || ensemble->claim() != world_.store_.record.claim) continue;
            return act_as_owner(index, *ensemble);
        }
        if (scope_.promise_ticks != 0) do_step({Kind::tick, 0, 0});
        if (round_ % 4 != 3) return;
        for (unsigned i = 0; i < world_.nodes_.size(); ++i) {
            if (!is_good(i)) continue;
            // A claimer that cannot go on leaves, and claims anew where claiming may help.
            world_.nodes_[i].owner = std::monostate{};
            world_.nodes_[i].log.clear();
            return do_step({Kind::claim, static_cast<uint8_t>(i), 0});
        }
    }

    void act_as_owner(uint8_t index, replica::Ensemble& ensemble) {
        if (!is_good(index)) {
            // Its own device is gone: somebody else claims.
            world_.nodes_[index].owner = std::monostate{};
            world_.nodes_[index].log.clear();
            return;
        }
        if (!has_written_) {
            has_written_ = true;
            target_ = ensemble.last_lsn().next();
            return do_step({Kind::write, index, 0});
        }
        has_written_ = ensemble.last_lsn() >= target_;
        if (ensemble.may_give_up()) return do_step({Kind::give_up, index, 0});
        if (ensemble.may_propose()) return do_step({Kind::propose, index, good_set(index)});
    }

    const Scope& scope_;
    Post& post_;
    World world_;
    NodeMask silent_;
    std::vector<std::string>* story_;
    unsigned round_ = 0;
    bool has_written_ = false;
    Lsn target_;
};

std::string check_progress(const Scope& scope, Post& post, const World& world,
                           std::vector<std::string>* story) {
    auto spare = static_cast<unsigned>(std::popcount(scope.first)) - 1;
    if (world.losses() > spare) return {};
    std::string problem = Rounds(scope, post, world, 0, story).run();
    if (!problem.empty()) return problem;
    bool is_restored = world.store().generation != 1;
    if (world.losses() == spare || is_restored) return {};
    for (unsigned i = 0; i < scope.nodes; ++i) {
        if (story != nullptr) story->push_back(name_of(NodeId(i + 1)) + " stays silent:");
        problem = Rounds(scope, post, world, static_cast<NodeMask>(1u << i), story).run();
        if (!problem.empty())
            return fmt::format("{}, with {} silent", problem, name_of(NodeId(i + 1)));
    }
    return {};
}

}  // namespace peplos::model
