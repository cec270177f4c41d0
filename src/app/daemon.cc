#include "app/daemon.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/signal_set.hpp>
#include <csignal>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/door.h"
#include "app/lost_store.h"
#include "app/node_identity.h"
#include "app/notify.h"
#include "attach/fuse_attachments.h"
#include "base/log.h"
#include "control/backup.h"
#include "control/embedded_store.h"
#include "control/etcd_store.h"
#include "control/move_store.h"
#include "control/records.h"
#include "docker/door.h"
#include "fabric/local_node.h"
#include "http/listen.h"
#include "keeper/keeper.h"
#include "runtime/core.h"
#include "runtime/system.h"

namespace peplos::app {
namespace {

// The kernel may want memory written back through this daemon: it must not wait for its own pages.
void pin_process() {
#ifndef MCL_ONFAULT
#define MCL_ONFAULT 4
#endif
    if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0) {
        LOG_WARN("memory not locked, a swapping host may stall volumes why=\"{}\"",
                 std::strerror(errno));
    }
#ifdef PR_SET_IO_FLUSHER
    if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0) {
        LOG_DEBUG("not an I/O flusher why=\"{}\"", std::strerror(errno));
    }
#endif
    std::signal(SIGPIPE, SIG_IGN);
}

Result<void> make_directory(const std::string& path) {
    std::string prefix;
    for (size_t at = 1; at != std::string::npos && at <= path.size();) {
        at = path.find('/', at);
        prefix = path.substr(0, at);
        if (mkdir(prefix.c_str(), 0700) != 0 && errno != EEXIST) {
            return fail(Code::io_error, "cannot make directory {}: {}", prefix,
                        std::strerror(errno));
        }
        if (at != std::string::npos) ++at;
    }
    return {};
}

}  // namespace

// The node's scrub requests, done by the keeper.
class KeeperScrubber final : public fabric::Scrubber {
  public:
    KeeperScrubber(keeper::Keeper& keeper, fabric::DeviceSet& devices)
        : keeper_(keeper), devices_(devices) {}
    Result<void> start_scrub() override {
        for (const auto& member : devices_.members()) {
            if (member->is_usable()) keeper_.share_journal(*member->journal);
        }
        return keeper_.start_scrub();
    }
    fabric::Node::ScrubReport scrub_report() const override {
        const keeper::ScrubReport& report = keeper_.scrub_report();
        return {report.running,       report.segments_done, report.segments_total,
                report.bytes_checked, report.problems,      report.finished_at};
    }
    std::optional<Failure> last_failure() const override {
        const keeper::KeeperStats& stats = keeper_.stats();
        if (stats.failures == 0) return std::nullopt;
        return Failure{stats.last_failure, stats.last_failure_at};
    }

  private:
    keeper::Keeper& keeper_;
    fabric::DeviceSet& devices_;
};

// What lives on the storage core, in the order in which it is made.
struct StorageSide {
    explicit StorageSide(std::unique_ptr<runtime::Core> storage_core)
        : core(std::move(storage_core)), system(core.get()) {}

    std::unique_ptr<runtime::Core> core;
    runtime::System system;
    std::unique_ptr<NodeIdentity> identity;  // beside a store that has no lock of its own
    std::unique_ptr<control::Store> store;
    std::unique_ptr<control::Backup> backup;  // of an embedded store
    std::unique_ptr<attach::FuseAttachments> attachments;
    std::unique_ptr<fabric::LocalNode> node;
    // Its budgets are the node's.
    std::unique_ptr<keeper::Keeper> keeper;
    std::unique_ptr<KeeperScrubber> scrubber;
};

// What lives on the door core: the thread that called run().
struct DoorSide {
    std::unique_ptr<runtime::Core> core;
    std::vector<http::ActivatedSocket> activated;
    std::unique_ptr<docker::Door> docker;
    std::unique_ptr<api::Door> api;

    // Calls that the node still works on; each spans both cores.
    size_t in_flight_count() const {
        size_t count = docker == nullptr ? 0 : docker->in_flight_count();
        return count + (api == nullptr ? 0 : api->in_flight_count());
    }
};

ExitStatus exit_status_of(const Error& error) {
    switch (error.code()) {
        case Code::invalid_argument:
        case Code::already_exists:
        case Code::permission_denied:
        case Code::unsupported:
        case Code::corrupt:
            return ExitStatus::needs_a_person;
        default:
            return ExitStatus::failed;
    }
}

Daemon::Daemon(Config config) : config_(std::move(config)) {}
Daemon::~Daemon() = default;

std::string Daemon::store_path() const {
    return config_.state_dir + "/control.db";
}

bool Daemon::has_store() const {
    struct stat info{};
    return stat(store_path().c_str(), &info) == 0 && info.st_size > 0;
}

Result<void> Daemon::prepare_process() {
    pin_process();
    if (config_.node_name.empty()) config_.node_name = host_name();
    TRY(make_directory(config_.state_dir));
    bool is_embedded = config_.control.kind == StoreKind::embedded;
    if (is_embedded && !has_store()) TRY(check_empty_state(config_));
    TRY(make_directory(config_.run_dir));
    return {};
}

Result<void> Daemon::run() {
    // Changes the environment, so before any thread starts.
    TRY_ASSIGN(std::vector<http::ActivatedSocket> activated, http::take_activated_sockets());
    TRY(prepare_process());
    runtime::CoreOptions storage_options;
    storage_options.name = "storage";
    storage_options.spin_max = config_.spin;
    TRY_ASSIGN(std::unique_ptr<runtime::Core> storage_core, runtime::Core::make(storage_options));
    runtime::CoreOptions door_options;
    door_options.name = "doors";
    TRY_ASSIGN(std::unique_ptr<runtime::Core> door_core, runtime::Core::make(door_options));
    storage_ = std::make_unique<StorageSide>(std::move(storage_core));
    doors_ = std::make_unique<DoorSide>();
    doors_->core = std::move(door_core);
    doors_->activated = std::move(activated);
    storage_->core->start();
    runtime::spawn(doors_->core->executor(), serve());
    doors_->core->run();
    storage_->core->stop();
    return outcome_;
}

runtime::Task<void> Daemon::serve() {
    runtime::Executor storage = storage_->core->executor();
    outcome_ = co_await runtime::call_on(storage, [this] { return start_storage(); });
    if (outcome_) outcome_ = co_await start_doors();
    if (outcome_) {
        notify_manager("READY=1");
        LOG_INFO("serving node={} api={} plugin={}", config_.node_name, config_.api_socket,
                 config_.plugin_socket);
        co_await wait_for_signal();
        notify_manager("STOPPING=1");
    }
    co_await stop_all();
    doors_->core->stop();
}

runtime::Task<Result<void>> Daemon::open_embedded_store(runtime::Env env) {
    if (!has_store()) CO_TRY(co_await check_unused_devices(config_, env));
    control::EmbeddedStore::Options options;
    options.path = store_path();
    options.if_missing = control::EmbeddedStore::IfMissing::create;
    CO_TRY_ASSIGN(std::unique_ptr<control::EmbeddedStore> store,
                  co_await control::EmbeddedStore::open(std::move(options)));
    storage_->backup =
        std::make_unique<control::Backup>(env.executor, env.clock, *store, config_.state_dir);
    storage_->store = std::move(store);
    co_return Result<void>();
}

// The file moves into the etcd before anything serves: containers wait as over any restart.
runtime::Task<Result<void>> Daemon::move_store_to(control::Store& to) {
    control::EmbeddedStore::Options options;
    options.path = store_path();
    CO_TRY_ASSIGN(std::unique_ptr<control::EmbeddedStore> from,
                  co_await control::EmbeddedStore::open(std::move(options)));
    Result<void> moved = co_await control::move_store(*from, to);
    Result<void> stopped = co_await from->stop();
    if (moved) moved = std::move(stopped);
    if (!moved) co_return fail(std::move(moved).error().within("moving the control store to etcd"));
    // Before the file's name says that it was moved: this node is known by its file from then on.
    CO_TRY_ASSIGN(NodeId mine, co_await stored_node());
    CO_TRY_ASSIGN(storage_->identity, NodeIdentity::open(config_.state_dir, mine));
    std::string aside = store_path() + ".moved";
    if (std::rename(store_path().c_str(), aside.c_str()) != 0) {
        co_return fail(Code::io_error, "cannot rename {} to {}: {}", store_path(), aside,
                       std::strerror(errno));
    }
    LOG_INFO("the control store moved to etcd; the old file is kept as {}", aside);
    co_return Result<void>();
}

// The id of the one node that the store knows; none in a store without a cluster.
runtime::Task<Result<NodeId>> Daemon::stored_node() {
    CO_TRY_ASSIGN(control::Page nodes,
                  co_await control::list_all(*storage_->store, std::string(control::kNodePrefix)));
    if (nodes.entries.size() != 1) co_return NodeId{};
    CO_TRY_ASSIGN(control::NodeRecord node,
                  control::decode<control::NodeRecord>(nodes.entries.front().value));
    co_return node.id;
}

runtime::Task<Result<void>> Daemon::open_etcd_store(runtime::Env env) {
    control::EtcdOptions options;
    options.address.endpoints = config_.control.endpoints;
    options.address.ca_file = config_.control.ca;
    options.address.cert_file = config_.control.cert;
    options.address.key_file = config_.control.key;
    options.prefix = config_.control.prefix;
    options.mark_file = config_.state_dir + "/etcd-mark";
    CO_TRY_ASSIGN(std::unique_ptr<control::EtcdStore> store,
                  co_await control::EtcdStore::connect(std::move(options)));
    // Owned before the next step that may fail: it is stopped with the rest.
    storage_->store = std::move(store);
    if (has_store()) {
        CO_TRY(co_await move_store_to(*storage_->store));
    } else {
        CO_TRY_ASSIGN(storage_->identity, NodeIdentity::open(config_.state_dir));
    }
    CO_TRY(co_await control::check_not_moving(*storage_->store));
    CO_TRY_ASSIGN(std::optional<control::KeyValue> cluster,
                  co_await storage_->store->get(std::string(control::kClusterKey)));
    if (!cluster) CO_TRY(co_await check_unused_devices(config_, env));
    co_return Result<void>();
}

runtime::Task<Result<void>> Daemon::start_storage() {
    StorageSide& side = *storage_;
    runtime::Env env = side.system.env();
    if (config_.control.kind == StoreKind::embedded) {
        CO_TRY(co_await open_embedded_store(env));
    } else {
        CO_TRY(co_await open_etcd_store(env));
    }

    fabric::LocalNodeOptions node_options;
    node_options.name = config_.node_name;
    if (side.identity != nullptr) node_options.id = side.identity->id();
    node_options.devices.overlay_bytes = config_.overlay_bytes;
    node_options.devices.leaf_cache_bytes = config_.leaf_cache_bytes;
    side.node = std::make_unique<fabric::LocalNode>(side.system.env(), *side.store, node_options);
    fabric::DeviceSet& devices = side.node->devices();
    side.keeper = std::make_unique<keeper::Keeper>(side.system.env());
    side.keeper->share(devices.overlay(), devices.space(), devices.leaf_cache());
    side.scrubber = std::make_unique<KeeperScrubber>(*side.keeper, devices);
    side.keeper->start();
    side.node->set_background(side.keeper.get());
    side.node->set_scrubber(side.scrubber.get());

    attach::AttachOptions attach_options;
    attach_options.state_directory = config_.run_dir;
    side.attachments = std::make_unique<attach::FuseAttachments>(
        side.system.env().executor, side.system.env().clock, attach_options);
    Result<void> ready = co_await side.attachments->open();
    if (!ready) co_return fail(std::move(ready).error().within("volumes cannot be attached"));
    side.node->set_attachments(side.attachments.get());
    CO_TRY(co_await side.node->start());
    if (side.backup != nullptr) side.backup->start();
    CO_TRY(co_await add_devices());
    co_return Result<void>();
}

runtime::Task<Result<void>> Daemon::add_devices() {
    StorageSide& side = *storage_;
    for (const DeviceConfig& device : config_.devices) {
        CO_TRY_ASSIGN(fabric::NodeStatus status, co_await side.node->status());
        bool known = std::any_of(
            status.devices.begin(), status.devices.end(),
            [&device](const fabric::DeviceInfo& info) { return info.path == device.path; });
        if (known) continue;
        Result<fabric::DeviceInfo> added =
            co_await side.node->add_device(device.path, device.create_bytes, device.media_class);
        if (!added) {
            co_return fail(std::move(added).error().within(
                fmt::format("device {} of the configuration", device.path)));
        }
    }
    co_return Result<void>();
}

runtime::Task<Result<void>> Daemon::start_doors() {
    runtime::Executor here = doors_->core->executor();
    docker::Options docker_options;
    docker_options.socket_paths = {config_.plugin_socket, config_.managed_socket};
    for (http::ActivatedSocket& socket : doors_->activated) {
        // The manager listens there already, and goes on while no daemon runs.
        std::erase(docker_options.socket_paths, http::path_of(socket.fd));
        docker_options.activated.push_back(std::move(socket.fd));
    }
    doors_->docker =
        std::make_unique<docker::Door>(here, *storage_->node, std::move(docker_options));
    CO_TRY(doors_->docker->start());
    api::Options api_options;
    api_options.socket_path = config_.api_socket;
    if (config_.api_port != 0) {
        api_options.tcp_port = config_.api_port;
        api_options.token_path = config_.api_token;
    }
    doors_->api = std::make_unique<api::Door>(here, *storage_->node, std::move(api_options));
    CO_TRY(doors_->api->start());
    co_return Result<void>();
}

runtime::Task<void> Daemon::wait_for_signal() {
    boost::asio::signal_set signals(doors_->core->context(), SIGTERM, SIGINT);
    auto token = boost::asio::as_tuple(runtime::kUseTask);
    auto [error, number] = co_await signals.async_wait(token);
    LOG_INFO("stopping signal={}", number);
}

namespace {

// Nothing works on the storage side afterwards, but everything is still there.
runtime::Task<void> stop_storage(StorageSide& side) {
    if (side.node != nullptr) co_await side.node->stop();
    if (side.keeper != nullptr) co_await side.keeper->stop();
    if (side.attachments != nullptr) co_await side.attachments->pause_all();
    if (side.backup != nullptr) co_await side.backup->stop();
    if (side.store != nullptr) {
        Result<void> stopped = co_await side.store->stop();
        if (!stopped) LOG_WARN("control store why=\"{}\"", stopped.error().text());
    }
}

runtime::Task<void> take_storage_apart(StorageSide& side) {
    side.scrubber.reset();
    side.keeper.reset();
    side.node.reset();
    side.attachments.reset();
    side.backup.reset();
    side.store.reset();
    side.identity.reset();
    co_return;
}

runtime::Task<void> pause_on_storage(StorageSide& side) {
    constexpr Duration kPause = std::chrono::milliseconds(5);
    co_await side.system.env().clock.sleep_for(kPause);
}

}  // namespace

runtime::Task<void> Daemon::stop_all() {
    runtime::Executor storage = storage_->core->executor();
    StorageSide& side = *storage_;
    if (doors_->api != nullptr) co_await doors_->api->stop();
    if (doors_->docker != nullptr) co_await doors_->docker->stop();
    // A Mount that dockerd was told has failed is taken back while the node can still do it.
    constexpr int kPatience = 1000;  // pauses: five seconds
    for (int i = 0; i < kPatience && doors_->in_flight_count() != 0; ++i) {
        co_await runtime::call_on(storage, [&side] { return pause_on_storage(side); });
    }
    co_await runtime::call_on(storage, [&side] { return stop_storage(side); });
    // The node has answered every call, so the last results are on their way here. What they make
    // the doors ask of the node comes before its end: one core runs what it is given in order.
    while (doors_->in_flight_count() != 0) {
        co_await runtime::call_on(storage, [&side] { return pause_on_storage(side); });
    }
    co_await runtime::call_on(storage, [&side] { return take_storage_apart(side); });
    doors_->api.reset();
    doors_->docker.reset();
}

}  // namespace peplos::app
