#include "runtime/reactor.h"

#include <boost/asio/detail/epoll_reactor.hpp>
#include <boost/asio/detail/scheduler.hpp>
#include <boost/version.hpp>

// The meaning of the members below was read in Boost 1.81's sources. Their names are checked by the
// compiler, their meaning by Core.IsWokenByAnotherThread and Core.SleepsWhenThereIsNothingToDo.
static_assert(BOOST_VERSION / 100 == 1081,
              "another Boost: read boost/asio/detail/impl/scheduler.ipp (do_poll_one, "
              "wake_one_thread_and_unlock) again before allowing it here");

namespace peplos::runtime {
namespace {

using asio::detail::epoll_reactor;
using asio::detail::scheduler;
using OperationQueue = asio::detail::op_queue<asio::detail::scheduler_operation>;

// An explicit instantiation may name private members ([temp.spec]); the friend function gives them
// out.
template <typename Tag, typename Tag::Type kMember>
struct Reveal {
    friend typename Tag::Type reveal(Tag) { return kMember; }
};
struct EpollFd {
    using Type = int epoll_reactor::*;
    friend Type reveal(EpollFd);
};
struct Interrupted {
    using Type = bool scheduler::*;
    friend Type reveal(Interrupted);
};
struct Queue {
    using Type = OperationQueue scheduler::*;
    friend Type reveal(Queue);
};
struct QueueMutex {
    using Type = asio::detail::conditionally_enabled_mutex scheduler::*;
    friend Type reveal(QueueMutex);
};
template struct Reveal<EpollFd, &epoll_reactor::epoll_fd_>;
template struct Reveal<Interrupted, &scheduler::task_interrupted_>;
template struct Reveal<Queue, &scheduler::op_queue_>;
template struct Reveal<QueueMutex, &scheduler::mutex_>;

using Lock = asio::detail::conditionally_enabled_mutex::scoped_lock;

scheduler& scheduler_of(asio::io_context& context) {
    return asio::use_service<asio::detail::io_context_impl>(context);
}

// While nobody runs the io_context, its queue holds the reactor's own entry and the handlers that
// are ready.
bool has_handlers(scheduler& from) {
    OperationQueue& queue = from.*reveal(Queue());
    auto* first = queue.front();
    return first != nullptr && asio::detail::op_queue_access::next(first) != nullptr;
}

}  // namespace

Reactor::Reactor(asio::io_context& context) : context_(context) {
    asio::use_service<epoll_reactor>(context).init_task();
}

int Reactor::fd() const {
    return asio::use_service<epoll_reactor>(context_).*reveal(EpollFd());
}

bool Reactor::has_ready() const {
    scheduler& s = scheduler_of(context_);
    Lock lock(s.*reveal(QueueMutex()));
    return has_handlers(s);
}

bool Reactor::enter() {
    scheduler& s = scheduler_of(context_);
    Lock lock(s.*reveal(QueueMutex()));
    if (has_handlers(s)) return false;
    s.*reveal(Interrupted()) = false;
    return true;
}

void Reactor::leave() {
    scheduler& s = scheduler_of(context_);
    Lock lock(s.*reveal(QueueMutex()));
    s.*reveal(Interrupted()) = true;
}

}  // namespace peplos::runtime
