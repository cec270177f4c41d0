#include "runtime/readiness.h"

#include <boost/asio/redirect_error.hpp>
#include <poll.h>
#include <unistd.h>

#include "base/check.h"

namespace peplos::runtime {

Readiness::Readiness(Executor executor, int fd) : fd_(fd) {
    Core* core = Core::current();
    if (core != nullptr && &asio::query(executor, asio::execution::context) == &core->context()) {
        core_ = core;
        poll_.is_endless = true;
        poll_.complete = [](RingOperation* base, int32_t) {
            auto done = std::exchange(static_cast<Poll*>(base)->done, nullptr);
            done();
        };
        poll_.drop = [](RingOperation* base) {
            auto dropped = std::exchange(static_cast<Poll*>(base)->done, nullptr);
        };
        return;
    }
    boost::system::error_code error;
    stream_.emplace(std::move(executor));
    stream_->assign(fd, error);
    CHECK(!error, "a descriptor cannot be watched: {}", error.message());
}

Readiness::~Readiness() {
    CHECK(!poll_.done, "somebody waits for a descriptor that goes away");
    if (!stream_) close(fd_);
}

Task<void> Readiness::wait() {
    if (core_ != nullptr) return wait_on_ring();
    return [](Readiness* self) -> Task<void> {
        boost::system::error_code ignored;
        co_await self->stream_->async_wait(asio::posix::descriptor_base::wait_read,
                                           asio::redirect_error(kUseTask, ignored));
    }(this);
}

Task<void> Readiness::wait_on_ring() {
    co_await asio::async_initiate<const asio::use_awaitable_t<Executor>, void()>(
        [](auto handler, Readiness* self) {
            CHECK(!self->poll_.done, "one waiter at a time");
            self->poll_.done = std::move(handler);
            io_uring_sqe* entry = self->core_->ring().next_entry();
            io_uring_prep_poll_add(entry, self->fd_, POLLIN);
            self->core_->ring().attach(entry, &self->poll_);
        },
        kUseTask, this);
}

void Readiness::cancel() {
    if (core_ != nullptr) {
        if (poll_.done) core_->ring().cancel(&poll_);
        return;
    }
    boost::system::error_code ignored;
    stream_->cancel(ignored);
}

}  // namespace peplos::runtime
