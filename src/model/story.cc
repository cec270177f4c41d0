// What a step is called, for a person who reads a counterexample.
#include "model/world.h"

namespace peplos::model {

using Kind = Step::Kind;

std::string name_of(NodeId node) {
    return node ? std::string(1, static_cast<char>('A' + node.value - 1)) : "nobody";
}

namespace {

struct Wording {
    std::string operator()(const replica::FenceMessage& m) const {
        return fmt::format("FENCE epoch {}", m.claim.epoch);
    }
    std::string operator()(const replica::OpenMessage& m) const {
        return fmt::format("OPEN epoch {} version {} token {}, keep LSN {}, up to LSN {}",
                           m.claim.epoch, m.version, m.token.value, m.keep_lsn, m.last_lsn);
    }
    std::string operator()(const replica::AppendMessage& m) const {
        return fmt::format("APPEND epoch {} token {} LSN {}", m.claim.epoch, m.token.value, m.lsn);
    }
    std::string operator()(const replica::RenewMessage& m) const {
        return fmt::format("RENEW epoch {}", m.claim.epoch);
    }
    std::string operator()(const replica::ReleaseMessage& m) const {
        return fmt::format("RELEASE epoch {}", m.claim.epoch);
    }
    std::string operator()(const replica::FenceAnswer& m) const {
        return fmt::format("FENCE ANSWER epoch {}: {} up to LSN {}, opened by epoch {}",
                           m.claim.epoch,
                           m.outcome == replica::LogOutcome::complete ? "COMPLETE" : "UNKNOWN",
                           m.last_lsn, m.opened);
    }
    std::string operator()(const replica::MemberAnswer& m) const {
        return fmt::format("ANSWER epoch {} token {}: durable up to LSN {}{}", m.claim.epoch,
                           m.token.value, m.durable_lsn, m.is_gap ? ", a gap" : "");
    }
    std::string operator()(const replica::Refusal& m) const {
        constexpr const char* kReasons[] = {"fenced", "stranger", "failed"};
        return fmt::format("REFUSAL epoch {}: {}, fence {}", m.claim.epoch,
                           kReasons[static_cast<int>(m.reason)], m.fence);
    }
};

std::string text_of(NodeMask set) {
    std::string out = "{";
    for (unsigned i = 0; i < kNodesMax; ++i) {
        if ((set >> i & 1) != 0) out += name_of(NodeId(i + 1));
    }
    return out + "}";
}

}  // namespace

std::string text_of(const Envelope& envelope) {
    return fmt::format("{} -> {}: {}", name_of(envelope.from), name_of(envelope.to),
                       std::visit(Wording{}, envelope.message));
}

std::string World::describe(const Post& post, Step step) const {
    std::string who = name_of(NodeId(step.node + 1));
    auto set = static_cast<NodeMask>(step.argument);
    switch (step.kind) {
        case Kind::deliver:
            return "arrives " + text_of(post.at(step.argument));
        case Kind::finish_write:
            return who + "'s oldest disk write is durable";
        case Kind::fail_write:
            return who + "'s oldest disk write fails";
        case Kind::crash:
            return fmt::format("{} crashes and starts again; {} of its disk writes had landed", who,
                               step.argument);
        case Kind::wipe:
            return who + " comes back with another, empty device";
        case Kind::write:
            return fmt::format("a user writes {} at {}", written_ + 1, who);
        case Kind::begin_read:
            return "a user reads at " + who;
        case Kind::end_read:
            return who + " answers the read";
        case Kind::claim:
            return who + " claims the volume";
        case Kind::adopt:
            return fmt::format("{} adopts, for {}", who, text_of(set));
        case Kind::propose:
            return fmt::format("{} wants the ensemble {}", who, text_of(set));
        case Kind::give_up:
            return who + " gives its proposal up";
        case Kind::execute:
            return "the store carries out " + who + "'s compare-and-set";
        case Kind::lose_answer:
            return who + " is told: outcome of the compare-and-set unknown";
        case Kind::renew:
            return who + " sends heartbeats";
        case Kind::tick:
            return "time goes on";
        case Kind::backup:
            return "the control store is backed up";
        case Kind::roll_back:
            return "the control store is restored from the backup";
        case Kind::release:
            return who + " releases the volume";
    }
    return {};
}

}  // namespace peplos::model
