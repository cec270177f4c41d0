#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "runtime/net.h"
#include "sim/disk.h"

// Simulated streams between processes: delayed, held, broken, never reordered within a stream.
namespace peplos::sim {

struct NetProfile {
    LatencyRange delay{std::chrono::microseconds(50), std::chrono::microseconds(300)};
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
    std::deque<Chunk> chunks;
    // No byte follows those in `chunks`.
    bool ended = false;
    Buffer into;
    size_t filled = 0;
    Handler reader;
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

// All wires of the world.
class NetFabric {
  public:
    using ConnectHandler = std::move_only_function<void(std::shared_ptr<Stream>)>;

    NetFabric(World* world, NetProfile profile, uint64_t seed);

    // Nothing passes between the two any more: streams stall (as TCP does while it resends) and new
    // connections time out. heal() lets what was held go on.
    void partition(const Process& a, const Process& b);
    void heal();
    // Breaks every stream between the two: both ends see `unavailable`.
    void reset(const Process& a, const Process& b);
    void set_profile(NetProfile profile) { profile_ = profile; }

    // ---- for World and the Net seam ----

    // Chooses a port where `address` names port 0.
    Result<std::shared_ptr<ListenPoint>> listen(Process* process, std::string& address);
    // Calls `done` with the stream, or with null: refused, or not answered before `timeout`.
    void connect(Process* from, const std::string& address, Duration timeout, ConnectHandler done);
    // Requires: the sender did not close.
    void send(const std::shared_ptr<Stream>& stream, int pipe, Buffer bytes);
    // Hands over what has arrived to the reader that waits.
    void pump(const std::shared_ptr<Stream>& stream, int pipe);
    // Both pipes end; what was sent before still arrives.
    void close(const std::shared_ptr<Stream>& stream);
    // Its listeners are gone and its streams are broken.
    void drop(Process* process);

  private:
    bool is_cut(const Process* a, const Process* b) const;
    Duration delay();
    void pump_later(const std::shared_ptr<Stream>& stream, int pipe, Time time);
    void pump_all();

    World* world_;
    NetProfile profile_;
    Random random_;
    uint32_t port_next_ = 40'000;
    std::set<std::pair<uint32_t, uint32_t>> cut_;
    std::map<std::string, std::shared_ptr<ListenPoint>> listeners_;
    std::vector<std::weak_ptr<Stream>> streams_;
};

}  // namespace peplos::sim
