#include "base/log.h"
#include "fabric/local_node.h"

// Going on without what damage has taken.
namespace peplos::fabric {
namespace {

std::string joined(const std::vector<std::string>& lines) {
    std::string out;
    for (const std::string& line : lines) {
        if (!out.empty()) out += "; ";
        out += line;
    }
    return out;
}

RecoveryReport report_of(volume::LossReport found) {
    RecoveryReport out;
    out.is_whole = found.is_whole();
    out.findings = std::move(found.findings);
    out.losses = std::move(found.losses);
    out.lost_bytes = found.lost_blocks * kBlockBytes;
    out.dropped_bytes = found.dropped_blocks * kBlockBytes;
    return out;
}

}  // namespace

Task<Result<RecoveryReport>> LocalNode::recover_volume(std::string name, Loss loss) {
    CO_TRY_ASSIGN(auto pass, enter());
    CO_TRY_ASSIGN(EntryPtr entry, find(name));
    if (cluster_ != nullptr) {
        co_return fail(Code::unsupported,
                       "going on with loss works on a cluster of one node only; here a copy on "
                       "another node has what this one lost: mount volume {:?} there",
                       name);
    }
    co_return co_await recover_entry(std::move(entry), loss);
}

// Requires: the entry's lock. One attempt under an epoch of its own.
Task<Result<volume::LossReport>> LocalNode::salvage(Entry& entry, Loss loss,
                                                    std::optional<volume::LossReport> accepted) {
    CO_TRY_ASSIGN(DeviceSet::Member * home, home_of(entry));
    CO_TRY(co_await claim(entry, *home));
    volume::VolumeParams params = params_of(entry);
    auto on_loss = loss == Loss::accept ? replica::OnLoss::accept : replica::OnLoss::look;
    co_return co_await volume::Volume::recover(*home->resources, std::move(params), on_loss,
                                               std::move(accepted));
}

Task<Result<void>> LocalNode::store_loss(Entry& entry, control::LossRecord record) {
    control::Transaction change;
    change.push_back(control::put(control::loss_key(entry.record().id), std::nullopt,
                                  control::encode_loss(record)));
    CO_TRY(co_await store_.compare_and_set(std::move(change)));
    entry.loss = std::move(record);
    co_return Result<void>();
}

Task<Result<RecoveryReport>> LocalNode::recover_entry(EntryPtr entry, Loss loss) {
    auto guard = co_await entry->lock.lock();
    const std::string name = entry->record().name;
    if (entry->gone) co_return fail(Code::not_found, "the volume was removed meanwhile");
    RecoveryReport report;
    const bool is_served = entry->open != nullptr && !entry->open->faulted();
    if (is_served || entry->record().ensemble.empty()) {
        report.is_whole = true;
        report.message = fmt::format("volume {} can be used as it is", name);
        co_return report;
    }
    if (is_on_host(*entry) || entry->is_surviving || !entry->mounts.holders.empty()) {
        // What a mounted file system has in memory would not fit what is left below it.
        co_return fail(Code::busy,
                       "this host still has volume {:?} mounted; stop its containers, then: peplos "
                       "volume detach {} --force",
                       name, name);
    }
    if (entry->open != nullptr) co_await drop_faulted(*entry);
    CO_TRY_ASSIGN(volume::LossReport found, co_await salvage(*entry, Loss::show));
    report = report_of(found);
    if (report.is_whole) {
        entry->problem.clear();
        entry->is_unreadable = false;
        entry->shown.reset();
        report.message = fmt::format("nothing keeps volume {} closed: mount it again", name);
        co_return report;
    }
    // Who accepts means what was shown. A daemon that knows of nothing shown (it was started anew)
    // shows it first.
    if (loss == Loss::show || !entry->shown) {
        entry->shown = std::move(found);
        report.message = fmt::format(
            "nothing was changed; to go on without what is lost, for good: peplos volume recover "
            "{} --accept-loss",
            name);
        if (loss == Loss::accept) report.message = "look at it first: " + report.message;
        co_return report;
    }
    if (found.is_worse_than(*entry->shown)) {
        co_return fail(
            Code::busy,
            "volume {}: more would be lost now than was shown; nothing was given up; look "
            "again: peplos volume recover {}",
            name, name);
    }
    control::LossRecord record;
    record.accepted_at_s = unix_seconds(env_.clock.wall_now());
    record.what =
        report.losses.empty() ? "nothing but " + joined(report.findings) : joined(report.losses);
    CO_TRY(co_await store_loss(*entry, record));
    LOG_WARN("loss accepted volume={} name={} findings=\"{}\" losses=\"{}\"", entry->record().id,
             name, joined(report.findings), joined(report.losses));
    CO_TRY_ASSIGN(found, co_await salvage(*entry, Loss::accept, std::move(found)));
    report = report_of(std::move(found));
    report.is_done = true;
    record.is_done = true;
    entry->shown.reset();
    entry->problem.clear();
    entry->is_unreadable = false;
    report.message = fmt::format(
        "volume {} can be mounted again; check its file system and what it holds against a backup",
        name);
    Result<void> stored = co_await store_loss(*entry, std::move(record));
    if (!stored) {
        LOG_WARN("a recovery is not on record as done volume={} why=\"{}\"", entry->record().id,
                 stored.error().text());
    }
    co_return report;
}

}  // namespace peplos::fabric
