#include "app/lost_store.h"

#include <filesystem>

#include "control/backup.h"
#include "fabric/device_set.h"
#include "media/device.h"

namespace peplos::app {
namespace {

namespace files = std::filesystem;

// The newest copy beside the store or beside a device; empty when there is none.
std::string newest_backup(const Config& config) {
    std::vector<std::string> places{control::Backup::path_in(config.state_dir)};
    for (const DeviceConfig& device : config.devices)
        places.push_back(control::Backup::path_beside(device.path));
    std::string newest;
    files::file_time_type newest_time{};
    for (const std::string& place : places) {
        std::error_code error;
        files::file_time_type time = files::last_write_time(place, error);
        if (error || (!newest.empty() && time <= newest_time)) continue;
        newest = place;
        newest_time = time;
    }
    return newest;
}

Error lost(const Config& config, const std::string& what_shows) {
    if (config.control.kind == StoreKind::etcd) {
        return Error(
            Code::already_exists,
            fmt::format(
                "the etcd at {} holds no cluster below {}, but {}: this node had volumes. "
                "Nothing was changed. Their data are intact on the devices; their names are "
                "in the control store. Name the right etcd and prefix, or restore etcd from "
                "a snapshot. Only to give those volumes up, zero the first 2 MiB of the "
                "devices",
                config.control.endpoints.front(), config.control.prefix, what_shows));
    }
    std::string database = config.state_dir + "/control.db";
    std::string backup = newest_backup(config);
    std::string next = fmt::format("cp {} {}, then start peplosd again", backup, database);
    if (backup.empty()) {
        next = fmt::format("copy a backup of it to {}, then start peplosd again", database);
    }
    return Error(Code::already_exists,
                 fmt::format("the control store {} is missing, but {}: this node had volumes. "
                             "Nothing was changed. Their data are intact on the devices; their "
                             "names are in the control store. To restore it: {}. Only to give "
                             "those volumes up, empty {} and zero the first 2 MiB of the devices",
                             database, what_shows, next, config.state_dir));
}

}  // namespace

Result<void> check_empty_state(const Config& config) {
    std::error_code error;
    files::directory_iterator entries(config.state_dir, error);
    if (error) return {};  // opening the store will say why
    for (const files::directory_entry& entry : entries) {
        std::string name = entry.path().filename();
        // The store's own: of a first start that was cut short.
        if (name == "lost+found" || name == "control.db" || name == "control.db-journal") continue;
        return fail(lost(config, fmt::format("{} is not empty ({})", config.state_dir, name)));
    }
    return {};
}

runtime::Task<Result<void>> check_unused_devices(const Config& config, runtime::Env env) {
    for (const DeviceConfig& device : config.devices) {
        std::string path = device.path;
        auto disk = co_await fabric::open_disk(env, std::move(path));
        if (!disk && disk.error().code() == Code::not_found) continue;
        if (!disk) co_return fail(std::move(disk).error().within("device of the configuration"));
        CO_TRY_ASSIGN(bool is_used, co_await media::is_formatted(**disk));
        if (!is_used) continue;
        co_return fail(lost(config, fmt::format("{} is a Peplos device", device.path)));
    }
    co_return Result<void>();
}

}  // namespace peplos::app
