#include "fabric/records_io.h"

namespace peplos::fabric {

Task<Result<void>> settle(control::Store& store, control::Transaction transaction,
                          std::function<Task<Result<bool>>()> happened) {
    Result<control::Revision> applied = co_await store.compare_and_set(std::move(transaction));
    if (applied) co_return Result<void>();
    if (applied.error().code() != Code::outcome_unknown) {
        co_return fail(std::move(applied).error());
    }
    Result<bool> seen = co_await happened();
    if (!seen) co_return fail(std::move(applied).error());
    if (*seen) co_return Result<void>();
    co_return fail(Code::unavailable, "the control store did not apply a change; repeat it");
}

Task<Result<StoredVolume>> read_volume(control::Store& store, VolumeId id) {
    CO_TRY_ASSIGN(std::optional<control::KeyValue> entry,
                  co_await store.get(control::volume_key(id)));
    if (!entry) co_return fail(Code::not_found, "volume {} has no record", id);
    CO_TRY_ASSIGN(control::VolumeRecord record,
                  control::decode<control::VolumeRecord>(entry->value));
    co_return StoredVolume{std::move(record), entry->mod_revision};
}

namespace {

Task<Result<bool>> holds(control::Store& store, const control::VolumeRecord& wanted) {
    Result<StoredVolume> now = co_await read_volume(store, wanted.id);
    if (!now) co_return fail(std::move(now).error());
    co_return now->record == wanted;
}

}  // namespace

Task<Result<StoredVolume>> write_volume(control::Store& store, control::VolumeRecord record,
                                        control::Revision revision) {
    CO_TRY_ASSIGN(control::Transaction transaction, control::volume_update(record, revision));
    CO_TRY(co_await settle(store, std::move(transaction),
                           [&store, &record] { return holds(store, record); }));
    // The transaction says nothing of the key's own revision where it was settled by reading.
    co_return co_await read_volume(store, record.id);
}

}  // namespace peplos::fabric
