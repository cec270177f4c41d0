#pragma once

#include <array>
#include <string>
#include <unordered_map>
#include <variant>

#include "model/codec.h"
#include "model/monitor.h"
#include "replica/ensemble.h"
#include "replica/member_log.h"
#include "replica/takeover.h"

// A small cluster with one volume of one block, as one value: the machines of `replica`, their
// disks, the messages between them, the control store, and what the users saw.
namespace peplos::model {

using boost::container::static_vector;
using replica::MemberLog;
using replica::Ownership;

inline constexpr unsigned kNodesMax = 4;
inline constexpr size_t kMessagesMax = 512;
// Which write each LSN holds, from LSN 1 on; 0: a hole.
using Content = static_vector<uint8_t, 14>;
// Of nodes, bit by bit.
using NodeMask = uint8_t;

// What may happen at most, on any path; the search takes all orders of it.
struct Budget {
    uint8_t writes = 0;
    uint8_t claims = 0;
    uint8_t adoptions = 0;
    uint8_t changes = 0;
    uint8_t give_ups = 0;
    uint8_t crashes = 0;
    uint8_t wipes = 0;
    uint8_t io_errors = 0;
    uint8_t unknowns = 0;   // outcomes of compare-and-sets
    uint8_t backups = 0;    // of the control store
    uint8_t rollbacks = 0;  // to the backup
    uint8_t reads = 0;
    uint8_t renewals = 0;
    uint8_t ticks = 0;
    uint8_t releases = 0;
    void fields(this auto& self, auto&& visit) {
        visit(self.writes, self.claims, self.adoptions, self.changes, self.give_ups, self.crashes,
              self.wipes, self.io_errors, self.unknowns, self.backups, self.rollbacks, self.reads,
              self.renewals, self.ticks, self.releases);
    }
};

// A configuration of the search.
struct Scope {
    std::string_view name;
    std::string_view what;
    unsigned nodes = 3;
    NodeMask first = 0b011;                             // the first ensemble; node 0 owns it
    std::array<NodeMask, 4> sets{0b011, 0b101, 0b110};  // those that may be chosen; 0: no more
    NodeMask claimers = 0b111;
    NodeMask crashers = 0b111;  // which nodes may crash, be wiped, fail
    bool is_slow_disk = false;  // a write takes time; else it is durable at once
    bool is_backed_up = false;  // the control store, at the beginning
    int64_t promise_ticks = 0;
    Budget budget;
};

struct Envelope {
    NodeId from;
    NodeId to;
    replica::Message message;
    Content content;  // of an append: its record; of an open: the adopted log
    void fields(this auto& self, auto&& visit) {
        visit(self.from, self.to, self.message, self.content);
    }
};

// Every message that was ever sent in a search; states name them by number. A message that was
// sent can arrive at any later time, any number of times, or never.
class Post {
  public:
    explicit Post(Canon canon) : canon_(canon) {}
    uint16_t id_of(const Envelope& envelope);
    const Envelope& at(uint16_t id) const { return envelopes_[id]; }
    size_t size() const { return envelopes_.size(); }

  private:
    Canon canon_;
    std::vector<Envelope> envelopes_;
    std::unordered_map<std::string, uint16_t> ids_;
    Encoded scratch_;
};

struct DiskWrite {
    std::variant<MemberLog::WriteRecord, MemberLog::WriteFence, MemberLog::WriteOpen> what;
    Content content;
    void fields(this auto& self, auto&& visit) { visit(self.what, self.content); }
};

struct Node {
    // On the media.
    Incarnation incarnation;
    bool is_failed = false;
    MemberLog::Stored stored;
    Content media;
    // In memory.
    MemberLog member;
    Content cache;  // what the member reads back from its log
    static_vector<DiskWrite, 12> queue;
    std::variant<std::monostate, replica::Takeover, replica::Ensemble> owner;
    Content log;          // the owner's
    uint8_t reading = 0;  // value + 1 that was fetched for a read
    void fields(this auto& self, auto&& visit) {
        visit(self.incarnation, self.is_failed, self.stored, self.media, self.member, self.cache,
              self.queue, self.owner, self.log, self.reading);
    }
};

// A compare-and-set on its way.
struct CasCall {
    NodeId from;
    replica::CompareAndSet cas;
    bool is_given_up = false;  // its caller was told: outcome unknown
    void fields(this auto& self, auto&& visit) { visit(self.from, self.cas, self.is_given_up); }
};

struct Store {
    Ownership record;
    uint64_t generation = 1;
    bool has_backup = false;
    Ownership backup;
    void fields(this auto& self, auto&& visit) {
        visit(self.record, self.generation, self.has_backup, self.backup);
    }
};

// One step of the world.
struct Step {
    enum class Kind : uint8_t {
        deliver,
        finish_write,
        fail_write,
        crash,
        wipe,
        write,
        begin_read,
        end_read,
        claim,
        adopt,
        propose,
        give_up,
        execute,
        lose_answer,
        renew,
        tick,
        backup,
        roll_back,
        release,
    };
    Kind kind = Kind::deliver;
    uint8_t node = 0;
    uint16_t argument = 0;
};
using Steps = std::vector<Step>;

class World {
  public:
    // The first state: node 0 serves an empty volume.
    static World first(const Scope& scope);

    // All that may happen next.
    void list_steps(const Scope& scope, const Post& post, Steps& out) const;
    // Does it. False: nothing came of it. Breaches of an invariant go to problem().
    void apply(const Scope& scope, Post& post, Step step);
    const std::string& problem() const { return problem_; }
    std::string describe(const Post& post, Step step) const;
    // Where apply() tells what it does; null: nowhere.
    void narrate(std::vector<std::string>* story) { story_ = story; }

    void encode(const Scope& scope, Encoded& out) const;
    static World decode(const Scope& scope, const uint8_t* bytes);

    void fields(this auto& self, auto&& visit) {
        visit(self.nodes_, self.store_, self.calls_, self.net_, self.budget_, self.monitor_,
              self.tokens_, self.written_, self.losses_);
    }

    unsigned losses() const { return losses_; }
    const Store& store() const { return store_; }

  private:
    friend class Rounds;
    Node& node(NodeId id) { return nodes_[id.value - 1]; }
    const Node& node(NodeId id) const { return nodes_[id.value - 1]; }
    bool is_node(NodeId id) const { return id && id.value <= nodes_.size(); }
    replica::Ensemble* serving(unsigned index) {
        return std::get_if<replica::Ensemble>(&nodes_[index].owner);
    }
    const replica::Ensemble* serving(unsigned index) const {
        return std::get_if<replica::Ensemble>(&nodes_[index].owner);
    }

    void deliver(const Envelope& envelope);
    void deliver_to_owner(NodeId to, const Envelope& envelope);
    void run(NodeId at, const MemberLog::Actions& actions, const Envelope* cause);
    void run(NodeId at, const replica::OwnerActions& actions);
    void send(NodeId from, NodeId to, const replica::Message& message, Content content);
    void send_from(NodeId at, const replica::SendFrom& from);
    void flush_local();
    void put_on_disk(NodeId at, DiskWrite write);
    void finish_write(NodeId at);
    void fail_write(NodeId at);
    void apply_to_node(Step step);
    void apply_to_owner(Step step);
    void apply_to_store(Step step);
    void restart(NodeId at, bool is_wiped);
    void after_owner(NodeId at);
    void serve(NodeId at);
    void acknowledge(NodeId at, Lsn lsn);
    void claim(unsigned index);
    void adopt(unsigned index, NodeMask set);
    void propose(unsigned index, NodeMask set);
    void execute(unsigned call);
    void answer_cas(const CasCall& call, replica::CasOutcome outcome);
    void read(Step step);
    void tick(const Scope& scope);
    void tidy_up();
    bool may_fetch(const replica::Takeover& takeover) const;
    replica::Members members_of(NodeMask set, const replica::Members* kept);
    void check_acknowledged();
    void breach(std::string what);
    void tell(const std::string& what) const;
    void set_timing(const Scope& scope);

    static_vector<Node, kNodesMax> nodes_;
    Store store_;
    static_vector<CasCall, 6> calls_;
    static_vector<uint16_t, kMessagesMax> net_;  // ascending
    Budget budget_;
    Monitor monitor_;
    uint64_t tokens_ = 0;
    uint8_t written_ = 0;
    uint8_t losses_ = 0;  // devices that were wiped or failed

    // Of one step, no part of the state.
    Post* post_ = nullptr;
    const Scope* scope_ = nullptr;
    std::vector<Envelope> local_;
    std::string problem_;
    std::vector<std::string>* story_ = nullptr;
    Time now_ = kNow;
};

std::string name_of(NodeId node);
std::string text_of(const Envelope& envelope);

}  // namespace peplos::model
