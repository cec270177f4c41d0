#include "attach/fuse_session.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/log.h"

namespace peplos::attach {

namespace asio = boost::asio;

namespace {

// Requests read in one go before others of the core get their turn.
constexpr int kReadsPerTurn = 64;
// Servers that wait for a request; beyond these they end.
constexpr size_t kIdleServersMax = 64;

}  // namespace

Buffer ReceiveBuffer::take_payload(size_t bytes) {
    CHECK(bytes <= tail_.size());
    if (bytes <= kFuseIoBytesMax / 2) {
        return Buffer::copy_of(tail_.bytes().first(bytes));
    }
    Buffer payload = tail_.slice(0, bytes);
    tail_ = Buffer::allocate(kRequestTailBytes);
    return payload;
}

FuseSession::FuseSession(runtime::Executor executor, VolumeId id,
                         std::shared_ptr<volume::BlockDevice> device,
                         std::shared_ptr<ReceiveBuffer> receive, int fd)
    : executor_(std::move(executor)),
      id_(id),
      device_(std::move(device)),
      receive_(std::move(receive)),
      readiness_(executor_, fd) {
    ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
}

FuseSession::~FuseSession() {
    // Left where a core ended before the session: its tasks are destroyed, not run.
    for (Server* server : std::exchange(idle_, {})) {
        auto dropped = std::move(server->resume);
    }
    CHECK(gate_.inside_count() == 0, "a session is stopped first");
}

void FuseSession::start() {
    gate_.spawn(executor_, serve());
}

Result<void> FuseSession::resend() {
    fuse_out_header out{};
    out.len = sizeof(out);
    out.error = kNotifyResend;
    if (::write(fd(), &out, sizeof(out)) == static_cast<ssize_t>(sizeof(out))) return {};
    int error = errno;
    if (error == EINVAL) {
        return fail(Code::unsupported,
                    "this kernel cannot resend the I/O of volume {} to a restarted daemon: it "
                    "needs Linux 6.9 or later",
                    id_);
    }
    return fail(Code::unavailable, "the kernel's FUSE connection of volume {} is gone: {}", id_,
                ::strerror(error));
}

runtime::Task<void> FuseSession::stop() {
    stopping_ = true;
    readiness_.cancel();
    room_.wake_all();
    for (Server* server : std::exchange(idle_, {})) {
        auto resume = std::move(server->resume);
        resume();
    }
    co_await gate_.close();
}

runtime::Task<void> FuseSession::serve() {
    while (!stopping_ && !dead_) {
        Step step = Step::again;
        for (int i = 0; i < kReadsPerTurn && step == Step::again; ++i) {
            if (in_flight_ >= limits::kVolumeIoCountMax) break;
            step = receive_one();
        }
        if (step == Step::ended) {
            dead_ = true;
        } else if (step == Step::drained) {
            co_await readiness_.wait();
        } else if (in_flight_ >= limits::kVolumeIoCountMax) {
            co_await room_.wait();
        } else {
            co_await runtime::yield();
        }
    }
}

FuseSession::Step FuseSession::receive_one() {
    std::array<iovec, 2> parts{{{receive_->head().data(), kRequestHeadBytes},
                                {receive_->tail().data(), receive_->tail().size()}}};
    ssize_t count = ::readv(fd(), parts.data(), parts.size());
    if (count < 0) {
        switch (errno) {
            case EAGAIN:
                return Step::drained;
            case EINTR:
            case ENOENT:
                return Step::again;  // the request was withdrawn while it was handed out
            case ENODEV:
            case ECONNABORTED:
                return Step::ended;
            default:
                LOG_ERROR("reading the kernel's FUSE requests failed volume={} error={}", id_,
                          ::strerror(errno));
                return Step::ended;
        }
    }
    size_t total = static_cast<size_t>(count);
    Bytes head = Bytes(receive_->head()).first(std::min(total, kRequestHeadBytes));
    auto request = decode_request(head, total);
    if (!request) {
        LOG_ERROR("{} volume={}", request.error().text(), id_);
        return Step::ended;
    }
    ++counters_.requests;
    if (request->resent) ++counters_.resent;
    dispatch(*request, total);
    return Step::again;
}

void FuseSession::dispatch(const FuseRequest& request, size_t total) {
    switch (request.op) {
        case FuseOp::read:
        case FuseOp::fallocate:
            return hand_out(request, Buffer());
        case FuseOp::write: {
            CHECK(total == kRequestHeadBytes + request.bytes);
            if (request.bytes == 0) return reply_struct(request.unique, fuse_write_out{});
            return hand_out(request, receive_->take_payload(request.bytes));
        }
        case FuseOp::init:
            return answer_init(request);
        case FuseOp::getattr: {
            // Valid for no time at all: after a grow the kernel must see the new size.
            fuse_attr_out out{};
            out.attr = file_attributes(device_->size_bytes());
            return reply_struct(request.unique, out);
        }
        case FuseOp::setattr:
            return answer_setattr(request);
        case FuseOp::open: {
            fuse_open_out out{};
            out.open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES | FOPEN_NOFLUSH;
            return reply_struct(request.unique, out);
        }
        case FuseOp::statfs:
            return answer_statfs(request);
        case FuseOp::release:
        case FuseOp::flush:
        case FuseOp::destroy:
            return reply(request.unique, {});
        case FuseOp::forget:
            return;
        case FuseOp::unsupported:
            return reply_error(request.unique, ENOSYS);
    }
}

void FuseSession::hand_out(const FuseRequest& request, Buffer payload) {
    if (idle_.empty()) {
        return gate_.spawn(executor_, serve_requests(request, std::move(payload)));
    }
    Server& server = *idle_.back();
    idle_.pop_back();
    server.request = request;
    server.payload = std::move(payload);
    auto resume = std::move(server.resume);
    resume();
}

runtime::Task<void> FuseSession::serve_requests(FuseRequest first, Buffer payload) {
    Server server{first, std::move(payload), nullptr};
    for (;;) {
        if (server.request.op == FuseOp::read) {
            co_await serve_read(server.request);
        } else if (server.request.op == FuseOp::write) {
            co_await serve_write(server.request, std::move(server.payload));
        } else {
            co_await serve_fallocate(server.request);
        }
        if (stopping_ || idle_.size() >= kIdleServersMax) co_return;
        co_await wait_for_request(server);
        if (stopping_) co_return;
    }
}

runtime::Task<void> FuseSession::wait_for_request(Server& server) {
    co_await asio::async_initiate<const asio::use_awaitable_t<runtime::Executor>, void()>(
        [](auto handler, FuseSession* self, Server* waiting) {
            waiting->resume = std::move(handler);
            self->idle_.push_back(waiting);
        },
        runtime::kUseTask, this, &server);
}

void FuseSession::answer_init(const FuseRequest& request) {
    auto out = negotiate(request.init);
    if (!out) {
        LOG_ERROR("{} volume={}", out.error().text(), id_);
        return reply_error(request.unique, EPROTO);
    }
    if (!offers_resend(request.init)) {
        LOG_WARN("the kernel cannot resend I/O after a restart of the daemon volume={} fuse={}.{}",
                 id_, request.init.major, request.init.minor);
    }
    reply_struct(request.unique, *out);
}

void FuseSession::answer_setattr(const FuseRequest& request) {
    // The mounter truncates to the size that is: the kernel is sure to keep the answer to that.
    bool resizes = (request.setattr_valid & FATTR_SIZE) != 0;
    if (resizes && request.setattr_size != device_->size_bytes()) {
        return reply_error(request.unique, EPERM);
    }
    fuse_attr_out out{};
    out.attr = file_attributes(device_->size_bytes());
    reply_struct(request.unique, out);
}

void FuseSession::answer_statfs(const FuseRequest& request) {
    fuse_statfs_out out{};
    out.st.blocks = device_->size_bytes() / kBlockBytes;
    // The loop driver takes the discard granularity from here.
    out.st.bsize = kBlockBytes;
    out.st.frsize = kBlockBytes;
    out.st.namelen = 255;
    reply_struct(request.unique, out);
}

namespace {

// Counts a request that has left the receive buffer and is not answered yet.
class InFlight {
  public:
    InFlight(size_t& count, runtime::WaitList& room) : count_(count), room_(room) { ++count_; }
    ~InFlight() {
        if (count_-- == limits::kVolumeIoCountMax) room_.wake_one();
    }
    InFlight(const InFlight&) = delete;
    InFlight& operator=(const InFlight&) = delete;

  private:
    size_t& count_;
    runtime::WaitList& room_;
};

}  // namespace

runtime::Task<void> FuseSession::serve_read(FuseRequest request) {
    InFlight in_flight(in_flight_, room_);
    uint64_t size = device_->size_bytes();
    if (request.offset >= size || request.bytes == 0) {
        reply(request.unique, {});
        co_return;
    }
    // The loop device asks in whole sectors. A person who reads the file at an odd place gets the
    // sectors around it, possibly fewer bytes than asked for, as read(2) may.
    uint32_t sector = device_->sector_bytes();
    uint64_t end = std::min(request.offset + request.bytes, size);
    uint64_t from = round_down(request.offset, sector);
    uint64_t to = std::min({round_up(end, sector), size, from + kFuseIoBytesMax});
    end = std::min(end, to);
    Buffer data = Buffer::allocate(to - from);
    auto done = co_await device_->read(from, data);
    if (!done) {
        reply_failure(request.unique, done.error());
        co_return;
    }
    reply(request.unique, data.bytes().subspan(request.offset - from, end - request.offset));
}

runtime::Task<void> FuseSession::serve_write(FuseRequest request, Buffer payload) {
    InFlight in_flight(in_flight_, room_);
    uint64_t size = device_->size_bytes();
    uint32_t sector = device_->sector_bytes();
    if (request.offset > size || request.bytes > size - request.offset) {
        reply_error(request.unique, EFBIG);
        co_return;
    }
    if (request.offset % sector != 0 || request.bytes % sector != 0) {
        reply_error(request.unique, EINVAL);
        co_return;
    }
    auto done = co_await device_->write(request.offset, payload);
    if (!done) {
        reply_failure(request.unique, done.error());
        co_return;
    }
    fuse_write_out out{};
    out.size = static_cast<uint32_t>(request.bytes);
    reply_struct(request.unique, out);
}

runtime::Task<void> FuseSession::serve_fallocate(FuseRequest request) {
    InFlight in_flight(in_flight_, room_);
    constexpr uint32_t kZeroing = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;
    constexpr uint32_t kKnown = kZeroing | FALLOC_FL_KEEP_SIZE;
    uint64_t size = device_->size_bytes();
    uint32_t sector = device_->sector_bytes();
    if ((request.mode & kZeroing) == 0 || (request.mode & ~kKnown) != 0) {
        reply_error(request.unique, EOPNOTSUPP);
        co_return;
    }
    if (request.offset >= size) {
        reply(request.unique, {});
        co_return;
    }
    uint64_t bytes = std::min(request.bytes, size - request.offset);
    if (request.offset % sector != 0 || bytes % sector != 0) {
        reply_error(request.unique, EINVAL);
        co_return;
    }
    auto done = co_await device_->zero(request.offset, bytes);
    if (!done) {
        reply_failure(request.unique, done.error());
        co_return;
    }
    reply(request.unique, {});
}

void FuseSession::reply(uint64_t unique, Bytes body) {
    fuse_out_header header{};
    header.len = static_cast<uint32_t>(sizeof(header) + body.size());
    header.unique = unique;
    std::array<iovec, 2> parts{
        {{&header, sizeof(header)}, {const_cast<std::byte*>(body.data()), body.size()}}};
    ssize_t written = ::writev(fd(), parts.data(), body.empty() ? 1 : 2);
    // ENOENT: the kernel has given the request up, e.g. because the connection was aborted.
    if (written < 0 && errno != ENOENT && errno != ENODEV) {
        LOG_ERROR("answering the kernel failed volume={} error={}", id_, ::strerror(errno));
    }
}

void FuseSession::reply_error(uint64_t unique, int error) {
    fuse_out_header header{};
    header.len = sizeof(header);
    header.error = -error;
    header.unique = unique;
    if (::write(fd(), &header, sizeof(header)) < 0 && errno != ENOENT && errno != ENODEV) {
        LOG_ERROR("answering the kernel failed volume={} error={}", id_, ::strerror(errno));
    }
}

void FuseSession::reply_failure(uint64_t unique, const Error& error) {
    if (error.code() == Code::stopping) return;
    ++counters_.errors;
    if (error.code() != Code::no_space) {
        LOG_WARN("I/O of an attached volume failed volume={} error={}", id_, error.text());
    }
    reply_error(unique, errno_of(error.code()));
}

}  // namespace peplos::attach
