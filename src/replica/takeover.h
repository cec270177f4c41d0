#pragma once

#include <optional>
#include <span>
#include <string>

#include "replica/protocol.h"

namespace peplos::replica {

// How a node becomes the owner of a volume: claim, fence, adopt, copy, commit, serve (DESIGN
// section 5). A restart is a takeover from oneself. A plain machine; see MemberLog and Ensemble.
//
// Invariants
//   1. Nothing is asked of a member before the claim is recorded: that freezes the ensemble.
//   2. A log is adopted only when a member of the recorded ensemble says `complete`. After the
//      control store was put back to an older state its ensemble proves nothing: then every node
//      of the cluster has to answer, and of the logs that the newest claim opened the longest is
//      adopted. (Whoever opens a log under a claim first gave it all that was acknowledged under
//      the claims before; under one claim there is one writer, so the longest holds the others.)
//   3. The commit is asked for when every member of the new ensemble durably holds the adopted
//      log; only when it is recorded is the volume served.
//   4. The epoch is higher than that of the control store and of every fence that was met. A fence
//      above what this claim was given proves that the control store went back.
//   5. A compare-and-set is over only by a definite answer; see Ensemble.
// Relax 2 for a restored store, and members that left the ensemble since that backup are believed.
//
// `lost` ends it: somebody else's claim is recorded. Read the record again, decide again.
class Takeover {
  public:
    enum class Phase : uint8_t { claiming, fencing, opening, committing, serving, lost };
    using Nodes = boost::container::small_vector<NodeId, 8>;

    Takeover() = default;
    // `token` is random and this claim's own. `fence_seen` is the highest that this node knows of.
    // `generation` is the control store's; `cluster` names every node, this one too.
    Takeover(NodeId self, OpenToken token, Epoch fence_seen, uint64_t generation, Nodes cluster);

    // `recorded` is the record as just read. A volume that never had an ensemble is adopted empty.
    void start(const Ownership& recorded, OwnerActions& out);
    // As Ensemble::on_cas().
    void on_cas(CasOutcome outcome, const Ownership& current, OwnerActions& out);
    void on_fence_answer(const FenceAnswer& answer);
    void on_answer(const MemberAnswer& answer, OwnerActions& out);
    void on_refusal(const Refusal& refusal, OwnerActions& out);
    // Sends again what was not answered yet.
    void repeat(Time now, OwnerActions& out) const;

    // Enough is known to adopt a log. Wait a little for the other members all the same: a longer
    // log saves writes that nobody was told of. Otherwise why_waiting() says what is missing.
    bool may_adopt() const;
    std::string why_waiting() const;
    // Whose log will be adopted; no node: the volume is new. Fetch it from that device, by a read
    // under this claim, before adopt().
    struct Source {
        NodeId node;
        Incarnation incarnation;
        Lsn last_lsn;
    };
    Source source() const;
    // It cannot be had from there after all.
    void on_source_lost(NodeId node);
    // Copies the log to a new ensemble; its members carry new tokens. Again with another one, when
    // a member of it does not answer. Requires may_adopt().
    void adopt(const Members& next, Time now, OwnerActions& out);
    // How far the adopted log goes.
    Lsn adopted_lsn() const { return adopted_lsn_; }
    // This member has its own log up to here, of which nothing has to be sent.
    Lsn keep_lsn(const EnsembleMember& member) const;

    Phase phase() const { return phase_; }
    // It answered, or failed for good.
    bool has_heard(NodeId node) const { return find(node) != nullptr; }
    // The ensemble as it was before this claim.
    const Members& recorded() const { return recorded_; }
    const Claim& claim() const { return mine_.claim; }
    // Recorded, once serving: what an Ensemble begins with.
    const Ownership& ownership() const { return mine_; }
    // The ensemble on record may be out of date; see invariant 2.
    bool is_restored() const { return is_restored_; }

    bool operator==(const Takeover&) const = default;
    void fields(this auto& self, auto&& visit) {
        visit(self.self_, self.generation_, self.cluster_, self.phase_, self.before_, self.mine_,
              self.recorded_, self.is_restored_, self.version_, self.heard_, self.next_,
              self.opened_, self.adopted_lsn_);
    }

  private:
    struct Heard {
        NodeId from;
        bool is_usable = false;  // it has the log that it spoke of
        Incarnation incarnation;
        LogOutcome outcome = LogOutcome::unknown;
        Lsn last_lsn;
        Epoch opened;
        bool operator==(const Heard&) const = default;
        void fields(this auto& self, auto&& visit) {
            visit(self.from, self.is_usable, self.incarnation, self.outcome, self.last_lsn,
                  self.opened);
        }
    };

    void claim(Epoch epoch, OwnerActions& out);
    void fence(OwnerActions& out) const;
    void commit(OwnerActions& out);
    void hear(const Heard& heard);
    const Heard* find(NodeId node) const;
    const EnsembleMember* recorded_member(NodeId node) const;
    const Heard* choose() const;
    bool is_better(const Heard& a, const Heard& b) const;
    bool has_everybody_answered() const;
    void send_open(const EnsembleMember& member, Time now, OwnerActions& out) const;

    NodeId self_;
    uint64_t generation_ = 0;
    Nodes cluster_;
    Phase phase_ = Phase::claiming;
    Ownership before_;  // what the compare-and-set under way expects
    Ownership mine_;    // and what it sets; recorded when none is under way
    Members recorded_;  // the ensemble before this claim
    bool is_restored_ = false;
    uint64_t version_ = 0;
    boost::container::small_vector<Heard, 4> heard_;
    Members next_;
    boost::container::static_vector<NodeId, limits::kEnsembleMembersMax> opened_;
    Lsn adopted_lsn_;
};

}  // namespace peplos::replica
