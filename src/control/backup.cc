#include "control/backup.h"

#include "base/log.h"
#include "control/records.h"

namespace peplos::control {
namespace {

// A copy holds up the store's calls: it may do so for one part of the time in this many.
constexpr int kShare = 20;

std::string parent_of(const std::string& path) {
    return path.substr(0, path.rfind('/'));
}

}  // namespace

std::string Backup::path_in(const std::string& state_dir) {
    return state_dir + "/control-backup.db";
}

std::string Backup::path_beside(const std::string& device_path) {
    return device_path + ".control-backup.db";
}

Backup::Backup(runtime::Executor executor, runtime::Clock& clock, EmbeddedStore& store,
               std::string state_dir)
    : executor_(std::move(executor)),
      clock_(clock),
      store_(store),
      state_dir_(std::move(state_dir)) {}

void Backup::start() {
    gate_.spawn(executor_, keep());
}

Task<void> Backup::stop() {
    if (stopping_) co_return;
    stopping_ = true;
    if (watch_ != nullptr) watch_->close();
    alarm_.ring();
    co_await gate_.close();
    co_await copy_all();
}

Task<void> Backup::keep() {
    while (!stopping_) {
        Result<std::unique_ptr<Watch>> watch = co_await store_.watch("", Revision{});
        if (stopping_) co_return;
        if (watch) {
            watch_ = watch->get();
            co_await copy_all();  // whatever changed before the watch began
            co_await follow(**watch);
            watch_ = nullptr;
        }
        if (!stopping_) co_await alarm_.wait(clock_, kIntervalMin);
    }
}

// Until the watch ends.
Task<void> Backup::follow(Watch& watch) {
    while (!stopping_) {
        Result<std::vector<Event>> changed = co_await watch.next();
        if (!changed || stopping_) co_return;
        Time began = clock_.now();
        co_await copy_all();
        Duration took = clock_.now() - began;
        if (stopping_) co_return;
        co_await alarm_.wait(clock_, std::max(kIntervalMin, took * kShare));
    }
}

Task<void> Backup::copy_all() {
    std::vector<std::string> paths = co_await targets();
    std::string failure;
    for (std::string& path : paths) {
        Result<void> copied = co_await store_.copy_to(std::move(path));
        if (!copied) failure = copied.error().message();
    }
    if (failure == failure_) co_return;
    failure_ = std::move(failure);
    if (failure_.empty()) {
        LOG_INFO("the control store's backups are up to date again");
    } else {
        LOG_WARN("no backup of the control store was written why=\"{}\"", failure_);
    }
}

Task<std::vector<std::string>> Backup::targets() {
    std::vector<std::string> paths{path_in(state_dir_)};
    Result<Page> devices = co_await list_all(store_, std::string(kDevicePrefix));
    if (!devices) co_return paths;
    for (const KeyValue& entry : devices->entries) {
        Result<DeviceRecord> device = decode<DeviceRecord>(entry.value);
        bool is_file = device && !device->path.starts_with("/dev/");
        if (is_file && parent_of(device->path) != state_dir_) {
            paths.push_back(path_beside(device->path));
        }
    }
    co_return paths;
}

}  // namespace peplos::control
