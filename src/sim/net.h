#pragma once

#include <compare>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "runtime/net.h"
#include "sim/disk.h"

// Simulated streams between processes, as TCP gives them: delayed, held, broken at any byte,
// forgotten by one end; never reordered within a stream, and bounded.
//
// Processes of one name are on one machine: what a test asks for between two processes holds
// between their machines, also after a restart.
namespace peplos::sim {

struct NetProfile {
    LatencyRange delay{std::chrono::microseconds(50), std::chrono::microseconds(300)};
    // So many of 1,000 writes meet a spike instead.
    uint32_t spike_permille = 0;
    LatencyRange spike{std::chrono::milliseconds(20), std::chrono::milliseconds(200)};
    // 0: as fast as the delays allow.
    uint64_t bytes_per_second = 0;
    // What one direction of a stream holds; a writer waits beyond that.
    uint64_t buffer_bytes = 1 * kMiB;
    // So many of 1,000 calls of read_some() give a part of what has arrived.
    uint32_t short_read_permille = 100;
};

// From one machine to another, by their numbers.
struct Way {
    uint32_t from = 0;
    uint32_t to = 0;
    auto operator<=>(const Way&) const = default;
    Way back() const { return {to, from}; }
};

// One direction of a stream: bytes that were sent and not yet read.
struct Pipe {
    struct Chunk {
        Time arrives;
        Buffer bytes;
    };
    using Handler = std::move_only_function<void(Result<void>)>;

    Process* from = nullptr;
    Process* to = nullptr;
    Way way;
    std::deque<Chunk> chunks;
    // Not acknowledged: in `chunks`, or read while no acknowledgement gets back.
    uint64_t buffered_bytes = 0;
    uint64_t read_bytes = 0;

    bool is_shut = false;      // the sender sends no more: its writes fail
    bool is_ended = false;     // the receiver learns that no byte follows those in `chunks`
    bool is_broken = false;    // the receiver's reads fail at once
    bool is_deserted = false;  // nobody will read: who sends is told so, if the machine answers
    std::optional<uint64_t> break_after_bytes;
    bool is_watched = false;  // for bytes that nobody acknowledges
    Time unacknowledged_since;

    Buffer into;
    size_t filled = 0;
    // The reader waits for all of `into`, or for any byte.
    bool wants_all = true;
    Handler reader;
    // Waits for room.
    std::move_only_function<void()> writer;
};

// pipes[0] leads from the connecting process to the accepting one, pipes[1] back.
struct Stream {
    Pipe pipes[2];
    std::string address;
};

// Where a process waits for connections.
struct ListenPoint {
    Process* process = nullptr;
    std::deque<std::shared_ptr<Stream>> arrived;
    std::move_only_function<void()> waiting;
    bool closed = false;
};

// How a process leaves its streams.
enum class Leaving : uint8_t {
    closed,  // its machine lives, and tells the others
    silent,  // its machine lost power: the others hear when they send, and it is up again
};

// All wires of the world.
class NetFabric {
  public:
    using ConnectHandler = std::move_only_function<void(std::shared_ptr<Stream>)>;

    NetFabric(World* world, NetProfile profile, uint64_t seed);

    // ---- faults ----

    // Nothing passes between the two any more: streams stall (as TCP does while it resends), break
    // for a sender that waits too long, and new connections time out. heal() lets what was held go
    // on.
    void partition(const Process& a, const Process& b);
    // Nothing passes from the one to the other, acknowledgements neither.
    void partition_one_way(const Process& from, const Process& to);
    void heal();
    void heal(const Process& a, const Process& b);
    // Breaks every stream between the two, at some byte of what is under way: that much still
    // arrives, and then both ends see `unavailable`.
    void reset(const Process& a, const Process& b);
    // The same as soon as `bytes` more were sent on a stream from the one to the other.
    void reset_after(const Process& from, const Process& to, uint64_t bytes);
    // The streams between the two are reset for `forgets` alone: the other end hears nothing until
    // it sends.
    void half_open(const Process& forgets, const Process& other);
    // Of all links, or from the one machine to the other.
    void set_profile(NetProfile profile) { profile_ = profile; }
    void set_profile(const Process& from, const Process& to, NetProfile profile);
    // What connections show as the identity() of the processes of that machine; empty by default.
    void set_identity(const std::string& machine, std::string identity);
    size_t stream_count(const Process& a, const Process& b) const;

    // ---- for World and the Net seam ----

    // Chooses a port where `address` names port 0.
    Result<std::shared_ptr<ListenPoint>> listen(Process* process, std::string& address);
    // Calls `done` with the stream, or with null: refused, or not answered before `timeout`.
    void connect(Process* from, const std::string& address, Duration timeout, ConnectHandler done);
    bool has_room(const Pipe& pipe) const;
    // Requires: the pipe is not shut.
    void send(const std::shared_ptr<Stream>& stream, int pipe, Buffer bytes);
    // Hands over what has arrived to the reader that waits.
    void pump(const std::shared_ptr<Stream>& stream, int pipe);
    // The end `side` is closed: what it sent before still arrives.
    void close(const std::shared_ptr<Stream>& stream, int side);
    // Its listeners are gone, and so are its ends of streams.
    void drop(Process* process, Leaving leaving);
    const std::string& identity_of(const Process& process) const;

  private:
    uint32_t machine_of(const Process& process);
    std::vector<std::shared_ptr<Stream>> streams_between(const Process& a, const Process& b);
    Way way_between(const Process& from, const Process& to) {
        return {machine_of(from), machine_of(to)};
    }
    bool is_cut(Way way) const { return cut_.contains(way); }
    const NetProfile& profile_of(Way way) const;
    Duration draw(LatencyRange range);
    // Of bytes that are sent now.
    Time arrival_of(Way way, uint64_t bytes);
    Time arrival_of(const Pipe& pipe, uint64_t bytes);
    void pump_later(const std::shared_ptr<Stream>& stream, int pipe, Time time);
    void pump_all();
    void fill_reader(Pipe& pipe);
    void acknowledge(Pipe& pipe);
    void wake_writer(Pipe& pipe);
    // Keeps a prefix of what has not arrived, which the seed chooses.
    void cut_short(Pipe& pipe);
    // Both ends.
    void break_stream(const std::shared_ptr<Stream>& stream);
    // This end's reads and writes fail; the other one hears nothing of it.
    void break_end(const std::shared_ptr<Stream>& stream, int side);
    // Bytes were sent that nobody acknowledges: in the end the sender is told.
    void watch(const std::shared_ptr<Stream>& stream, int pipe);
    void look_after(const std::shared_ptr<Stream>& stream, int pipe);

    World* world_;
    NetProfile profile_;
    Random random_;
    uint32_t port_next_ = 40'000;
    std::map<std::string, uint32_t> machines_;
    std::map<std::string, std::string> identities_;
    std::set<Way> cut_;
    std::map<Way, NetProfile> profiles_;
    std::map<Way, Time> busy_until_;
    std::map<std::string, std::shared_ptr<ListenPoint>> listeners_;
    std::vector<std::weak_ptr<Stream>> streams_;
};

}  // namespace peplos::sim
