#include "sim/net.h"

#include <algorithm>

#include "base/crc32c.h"
#include "sim/world.h"

namespace peplos::sim {
namespace {

constexpr uint64_t kStreamNet = 4;
// TCP gives bytes up that nobody acknowledged for this long (TCP_USER_TIMEOUT, tcp_net.cc), and
// looks after them so often.
constexpr Duration kUnacknowledgedMax = std::chrono::seconds(15);
constexpr Duration kResendAfter = std::chrono::milliseconds(500);

}  // namespace

NetFabric::NetFabric(World* world, NetProfile profile, uint64_t seed)
    : world_(world), profile_(profile), random_(seed, kStreamNet) {}

// ---- machines and links ----

uint32_t NetFabric::machine_of(const Process& process) {
    auto next = static_cast<uint32_t>(machines_.size());
    return machines_.try_emplace(process.name(), next).first->second;
}

void NetFabric::set_identity(const std::string& machine, std::string identity) {
    identities_[machine] = std::move(identity);
}

const std::string& NetFabric::identity_of(const Process& process) const {
    static const std::string none;
    auto it = identities_.find(process.name());
    return it == identities_.end() ? none : it->second;
}

void NetFabric::set_profile(const Process& from, const Process& to, NetProfile profile) {
    profiles_[way_between(from, to)] = profile;
}

const NetProfile& NetFabric::profile_of(Way way) const {
    auto it = profiles_.find(way);
    return it == profiles_.end() ? profile_ : it->second;
}

Duration NetFabric::draw(LatencyRange range) {
    auto low = static_cast<uint64_t>(range.low.count());
    auto high = static_cast<uint64_t>(range.high.count());
    return Duration(random_.between(low, std::max(low, high)));
}

Time NetFabric::arrival_of(Way way, uint64_t bytes) {
    const NetProfile& profile = profile_of(way);
    Time sent = world_->now();
    if (profile.bytes_per_second != 0) {
        Time& busy = busy_until_[way];
        auto takes = bytes * 1'000'000'000 / profile.bytes_per_second;
        sent = busy = std::max(busy, sent) + Duration(takes);
    }
    bool is_spike = profile.spike_permille != 0 && random_.chance(profile.spike_permille);
    return sent + draw(is_spike ? profile.spike : profile.delay);
}

// Never before those sent earlier on the same stream.
Time NetFabric::arrival_of(const Pipe& pipe, uint64_t bytes) {
    Time arrives = arrival_of(pipe.way, bytes);
    return pipe.chunks.empty() ? arrives : std::max(arrives, pipe.chunks.back().arrives);
}

void NetFabric::partition(const Process& a, const Process& b) {
    partition_one_way(a, b);
    partition_one_way(b, a);
}

void NetFabric::partition_one_way(const Process& from, const Process& to) {
    cut_.insert(way_between(from, to));
}

void NetFabric::heal() {
    cut_.clear();
    pump_all();
}

void NetFabric::heal(const Process& a, const Process& b) {
    cut_.erase(way_between(a, b));
    cut_.erase(way_between(b, a));
    pump_all();
}

void NetFabric::pump_all() {
    std::erase_if(streams_, [](const auto& stream) { return stream.expired(); });
    for (const auto& weak : std::vector(streams_)) {
        auto stream = weak.lock();
        for (int pipe : {0, 1})
            pump_later(stream, pipe, world_->now());
    }
}

// Of no process: who sent must hear of room also when who reads is dead.
void NetFabric::pump_later(const std::shared_ptr<Stream>& stream, int pipe, Time time) {
    world_->at(time, nullptr, [this, stream, pipe] { pump(stream, pipe); });
}

std::vector<std::shared_ptr<Stream>> NetFabric::streams_between(const Process& a,
                                                                const Process& b) {
    Way wanted = way_between(a, b);
    std::vector<std::shared_ptr<Stream>> found;
    for (const auto& weak : streams_) {
        auto stream = weak.lock();
        if (stream == nullptr) continue;
        Way way = stream->pipes[0].way;
        if (way == wanted || way.back() == wanted) found.push_back(stream);
    }
    return found;
}

size_t NetFabric::stream_count(const Process& a, const Process& b) const {
    auto is_between = [&](const std::weak_ptr<Stream>& weak) {
        auto stream = weak.lock();
        if (stream == nullptr || stream->pipes[0].is_shut || stream->pipes[1].is_shut) return false;
        const Pipe& pipe = stream->pipes[0];
        return (pipe.from->name() == a.name() && pipe.to->name() == b.name()) ||
               (pipe.from->name() == b.name() && pipe.to->name() == a.name());
    };
    return static_cast<size_t>(std::ranges::count_if(streams_, is_between));
}

// ---- faults of streams ----

void NetFabric::reset(const Process& a, const Process& b) {
    for (const auto& stream : streams_between(a, b))
        break_stream(stream);
}

void NetFabric::reset_after(const Process& from, const Process& to, uint64_t bytes) {
    for (const auto& stream : streams_between(from, to)) {
        for (Pipe& pipe : stream->pipes) {
            if (pipe.from->name() == from.name()) pipe.break_after_bytes = bytes;
        }
    }
}

void NetFabric::half_open(const Process& forgets, const Process& other) {
    for (const auto& stream : streams_between(forgets, other)) {
        int side = stream->pipes[0].from->name() == forgets.name() ? 0 : 1;
        cut_short(stream->pipes[side]);
        break_end(stream, side);
    }
}

void NetFabric::cut_short(Pipe& pipe) {
    uint64_t under_way = 0;
    for (const Pipe::Chunk& chunk : pipe.chunks) {
        if (chunk.arrives > world_->now()) under_way += chunk.bytes.size();
    }
    uint64_t lost = under_way == 0 ? 0 : random_.between(0, under_way);
    while (lost != 0) {
        Buffer& last = pipe.chunks.back().bytes;
        size_t count = std::min<uint64_t>(lost, last.size());
        last = last.slice(0, last.size() - count);
        lost -= count;
        if (last.empty()) pipe.chunks.pop_back();
    }
}

void NetFabric::break_stream(const std::shared_ptr<Stream>& stream) {
    for (int index : {0, 1}) {
        Pipe& pipe = stream->pipes[index];
        cut_short(pipe);
        pipe.is_shut = pipe.is_ended = true;
        pump_later(stream, index, arrival_of(pipe, 0));
        wake_writer(pipe);
    }
}

void NetFabric::break_end(const std::shared_ptr<Stream>& stream, int side) {
    Pipe& out = stream->pipes[side];
    Pipe& in = stream->pipes[1 - side];
    out.is_shut = true;
    wake_writer(out);
    in.chunks.clear();
    in.is_broken = in.is_deserted = true;
    pump_later(stream, 1 - side, world_->now());
}

void NetFabric::watch(const std::shared_ptr<Stream>& stream, int index) {
    Pipe& pipe = stream->pipes[index];
    if (pipe.is_watched || pipe.is_shut || pipe.buffered_bytes == 0) return;
    pipe.is_watched = true;
    pipe.unacknowledged_since = world_->now();
    Time soon = world_->now() + draw(profile_of(pipe.way).delay) + draw(profile_of(pipe.way).delay);
    world_->at(soon, nullptr, [this, stream, index] { look_after(stream, index); });
}

void NetFabric::look_after(const std::shared_ptr<Stream>& stream, int index) {
    Pipe& pipe = stream->pipes[index];
    bool is_held = is_cut(pipe.way) || is_cut(pipe.way.back());
    if (pipe.is_shut || pipe.buffered_bytes == 0 || (!is_held && !pipe.is_deserted)) {
        pipe.is_watched = false;
        return;
    }
    bool is_refused = pipe.is_deserted && !is_held && world_->is_up(pipe.to->name());
    if (is_refused || world_->now() - pipe.unacknowledged_since >= kUnacknowledgedMax) {
        return break_end(stream, index);
    }
    world_->at(world_->now() + kResendAfter, nullptr,
               [this, stream, index] { look_after(stream, index); });
}

// ---- connecting ----

Result<std::shared_ptr<ListenPoint>> NetFabric::listen(Process* process, std::string& address) {
    size_t colon = address.rfind(':');
    if (colon == std::string::npos) {
        return fail(Code::invalid_argument, "{} is not host:port", address);
    }
    if (address.substr(colon) == ":0") {
        address = fmt::format("{}:{}", address.substr(0, colon), port_next_++);
    }
    auto& place = listeners_[address];
    if (place != nullptr && !place->closed) {
        return fail(Code::unavailable, "{} is in use by {}", address, place->process->name());
    }
    place = std::make_shared<ListenPoint>();
    place->process = process;
    return place;
}

void NetFabric::connect(Process* from, const std::string& address, Duration timeout,
                        ConnectHandler done) {
    auto shared = std::make_shared<ConnectHandler>(std::move(done));
    Time give_up = world_->now() + timeout;
    auto answer_later = [this, from, shared, give_up] {
        world_->at(give_up, from, [shared] { (*shared)(nullptr); });
    };
    auto it = listeners_.find(address);
    Process* to = it == listeners_.end() ? nullptr : it->second->process;
    Way way = way_between(*from, to == nullptr ? *from : *to);
    if (to != nullptr && (is_cut(way) || is_cut(way.back()) || !world_->is_up(to->name())))
        return answer_later();
    Time answer = std::min(give_up, arrival_of(way, 0));
    world_->at(answer, from, [this, from, address, shared, way, answer_later] {
        auto found = listeners_.find(address);
        if (is_cut(way) || is_cut(way.back())) return answer_later();
        if (found == listeners_.end() || found->second->closed ||
            !found->second->process->is_alive()) {
            return (*shared)(nullptr);
        }
        ListenPoint& point = *found->second;
        auto stream = std::make_shared<Stream>();
        stream->address = address;
        Pipe& out = stream->pipes[0];
        Pipe& in = stream->pipes[1];
        out.from = in.to = from;
        out.to = in.from = point.process;
        out.way = way_between(*from, *point.process);
        in.way = out.way.back();
        std::erase_if(streams_, [](const auto& weak) { return weak.expired(); });
        streams_.push_back(stream);
        point.arrived.push_back(stream);
        if (point.waiting) point.process->post(std::exchange(point.waiting, nullptr));
        (*shared)(std::move(stream));
    });
}

// ---- bytes ----

bool NetFabric::has_room(const Pipe& pipe) const {
    return pipe.buffered_bytes < profile_of(pipe.way).buffer_bytes;
}

void NetFabric::send(const std::shared_ptr<Stream>& stream, int index, Buffer bytes) {
    Pipe& pipe = stream->pipes[index];
    CHECK(!pipe.is_shut);
    world_->note(crc32c(bytes.bytes()));
    pipe.buffered_bytes += bytes.size();
    if (pipe.is_deserted) return watch(stream, index);
    Time arrives = arrival_of(pipe, bytes.size());
    uint64_t count = bytes.size();
    pipe.chunks.push_back({arrives, std::move(bytes)});
    pump_later(stream, index, arrives);
    if (!pipe.break_after_bytes.has_value()) return;
    if (count >= *pipe.break_after_bytes) return break_stream(stream);
    *pipe.break_after_bytes -= count;
}

void NetFabric::fill_reader(Pipe& pipe) {
    size_t room = pipe.into.size() - pipe.filled;
    if (!pipe.wants_all && room > 1 && random_.chance(profile_of(pipe.way).short_read_permille))
        room = random_.between(1, room);
    while (room != 0 && !pipe.chunks.empty()) {
        Pipe::Chunk& chunk = pipe.chunks.front();
        if (chunk.arrives > world_->now()) break;
        size_t count = std::min(room, chunk.bytes.size());
        std::memcpy(pipe.into.data() + pipe.filled, chunk.bytes.data(), count);
        pipe.filled += count;
        pipe.read_bytes += count;
        room -= count;
        chunk.bytes = chunk.bytes.slice(count, chunk.bytes.size() - count);
        if (chunk.bytes.empty()) pipe.chunks.pop_front();
    }
}

void NetFabric::acknowledge(Pipe& pipe) {
    if (pipe.read_bytes == 0 || is_cut(pipe.way.back())) return;
    pipe.buffered_bytes -= std::exchange(pipe.read_bytes, 0);
    wake_writer(pipe);
}

void NetFabric::wake_writer(Pipe& pipe) {
    if (!pipe.writer || (!pipe.is_shut && !has_room(pipe))) return;
    pipe.from->post(std::exchange(pipe.writer, nullptr));
}

void NetFabric::pump(const std::shared_ptr<Stream>& stream, int index) {
    Pipe& pipe = stream->pipes[index];
    bool cut = is_cut(pipe.way);
    if (pipe.reader && !cut && !pipe.is_broken) fill_reader(pipe);
    acknowledge(pipe);
    if ((cut || is_cut(pipe.way.back())) && pipe.buffered_bytes != 0) watch(stream, index);
    bool is_over = pipe.is_broken || (pipe.is_ended && pipe.chunks.empty() && !cut);
    if (is_over) {
        // Whoever has read the end knows that its own bytes lead nowhere.
        Pipe& back = stream->pipes[1 - index];
        back.is_shut = true;
        wake_writer(back);
    }
    if (!pipe.reader) return;
    bool is_full = pipe.filled == pipe.into.size() || (!pipe.wants_all && pipe.filled != 0);
    if (!is_full && !is_over) return;
    pipe.into = {};
    Result<void> outcome;
    if (!is_full) {
        outcome = fail(Code::unavailable, "the connection to {} was closed", stream->address);
    }
    // As an event of the process that reads, which may be dead.
    pipe.to->post([reader = std::exchange(pipe.reader, nullptr),
                   outcome = std::move(outcome)]() mutable { reader(std::move(outcome)); });
}

void NetFabric::close(const std::shared_ptr<Stream>& stream, int side) {
    Pipe& out = stream->pipes[side];
    Pipe& in = stream->pipes[1 - side];
    out.is_shut = true;
    wake_writer(out);
    // What was reset at this end has nothing more to say.
    if (in.is_broken) return;
    out.is_ended = true;
    pump_later(stream, side, arrival_of(out, 0));
    in.chunks.clear();
    in.is_broken = in.is_deserted = true;
    watch(stream, 1 - side);
    pump_later(stream, 1 - side, world_->now());
}

void NetFabric::drop(Process* process, Leaving leaving) {
    for (auto& [address, point] : listeners_) {
        if (point->process != process) continue;
        point->closed = true;
        point->arrived.clear();
        auto waiting = std::exchange(point->waiting, nullptr);
    }
    for (const auto& weak : std::vector(streams_)) {
        auto stream = weak.lock();
        if (stream == nullptr) continue;
        for (int side : {0, 1}) {
            Pipe& out = stream->pipes[side];
            Pipe& in = stream->pipes[1 - side];
            if (out.from != process) continue;
            auto reader = std::exchange(in.reader, nullptr);
            auto writer = std::exchange(out.writer, nullptr);
            if (leaving == Leaving::closed) {
                close(stream, side);
            } else {
                cut_short(out);
                out.is_shut = true;
                in.chunks.clear();
                in.is_deserted = true;
                watch(stream, 1 - side);
            }
        }
    }
}

}  // namespace peplos::sim
