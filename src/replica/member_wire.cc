#include "replica/member_wire.h"

#include <algorithm>

#include "base/bytes.h"

namespace peplos::replica {

namespace {

constexpr uint16_t kMemberWireVersion = 1;
// Parts of one open.
constexpr uint32_t kPartsMax = 4096;
// What a record takes in a body, at least.
constexpr size_t kRecordBytesMin = sizeof(uint32_t) + format::kRecordHeaderBytes;
// No clock reads more: sums with a promise do not overflow.
constexpr int64_t kTimeMax = int64_t{1} << 62;

// ---- fields, in the order in which fields() lists them ----

class Writer {
  public:
    Writer() { put(kMemberWireVersion); }

    template <typename T>
    void put(const T& value) {
        if constexpr (requires { value.fields([](const auto&...) {}); }) {
            value.fields([this](const auto&... each) { (this->put(each), ...); });
        } else if constexpr (std::is_same_v<T, Time>) {
            put_bytes(bytes_of(int64_t{value.time_since_epoch().count()}));
        } else if constexpr (std::is_same_v<T, bool>) {
            put_bytes(bytes_of(static_cast<uint8_t>(value ? 1 : 0)));
        } else if constexpr (requires { value.value; }) {
            put_bytes(bytes_of(value.value));
        } else {
            static_assert(std::is_integral_v<T> || std::is_enum_v<T>);
            put_bytes(bytes_of(value));
        }
    }
    void put_records(const std::vector<format::Record>& records, std::vector<Buffer>* payload) {
        put(static_cast<uint32_t>(records.size()));
        for (const format::Record& record : records) {
            const uint32_t bytes = format::encoded_bytes(record);
            put(bytes);
            const size_t at = out_.size();
            out_.resize(at + bytes);
            format::encode_record(record, MutableBytes(out_).subspan(at));
            payload->insert(payload->end(), record.payload.begin(), record.payload.end());
        }
    }
    peer::Message take(std::vector<Buffer> payload = {}) {
        peer::Message message;
        message.body = std::move(out_);
        message.payload = std::move(payload);
        message.payload_check = peer::PayloadCheck::by_caller;
        return message;
    }

  private:
    void put_bytes(Bytes bytes) { out_.insert(out_.end(), bytes.begin(), bytes.end()); }

    std::vector<std::byte> out_;
};

// The payload of a message, cut up in order.
class PayloadReader {
  public:
    explicit PayloadReader(std::vector<Buffer> buffers) : buffers_(std::move(buffers)) {}
    // False: there is not so much.
    bool take(uint64_t bytes, format::Payload* out) {
        while (bytes != 0) {
            if (index_ == buffers_.size()) return false;
            const Buffer& from = buffers_[index_];
            const size_t count = std::min<uint64_t>(bytes, from.size() - offset_);
            out->push_back(from.slice(offset_, count));
            bytes -= count;
            offset_ += count;
            if (offset_ != from.size()) continue;
            ++index_;
            offset_ = 0;
        }
        return true;
    }
    bool is_at_end() const { return index_ == buffers_.size(); }

  private:
    std::vector<Buffer> buffers_;
    size_t index_ = 0;
    size_t offset_ = 0;
};

class Reader {
  public:
    explicit Reader(Bytes bytes) : reader_(bytes) {}

    Result<void> check_version() {
        auto version = reader_.read<uint16_t>();
        if (!reader_.ok()) return fail(Code::corrupt, "a message of no bytes");
        if (version == kMemberWireVersion) return {};
        return fail(Code::unsupported, "version {} of a journal's message; this node speaks {}",
                    version, kMemberWireVersion);
    }
    template <typename T>
    void get(T& value) {
        if constexpr (requires { value.fields([](auto&...) {}); }) {
            value.fields([this](auto&... each) { (this->get(each), ...); });
        } else if constexpr (std::is_same_v<T, Time>) {
            auto read = reader_.read<int64_t>();
            is_sound_ &= read >= 0 && read <= kTimeMax;
            value = Time(Time::duration(read));
        } else if constexpr (std::is_same_v<T, bool>) {
            auto read = reader_.read<uint8_t>();
            is_sound_ &= read <= 1;
            value = read == 1;
        } else if constexpr (std::is_same_v<T, LogOutcome>) {
            value = get_enum(LogOutcome::unknown);
        } else if constexpr (std::is_same_v<T, Refusal::Reason>) {
            value = get_enum(Refusal::Reason::failed);
        } else if constexpr (requires { value.value; }) {
            value = T(reader_.read<uint64_t>());
        } else {
            static_assert(std::is_integral_v<T>);
            value = reader_.read<T>();
        }
    }
    Result<void> get_records(std::vector<format::Record>& out, std::vector<Buffer> buffers) {
        auto count = reader_.read<uint32_t>();
        if (!reader_.ok() || count > reader_.remaining() / kRecordBytesMin)
            return fail(Code::corrupt, "a message with {} records in {} bytes", count,
                        reader_.remaining());
        PayloadReader payload(std::move(buffers));
        out.reserve(count);
        for (uint32_t i = 0; i < count; ++i) {
            auto bytes = reader_.read<uint32_t>();
            Bytes encoding = reader_.take(bytes);
            if (!reader_.ok()) return fail(Code::corrupt, "record {} is cut off", i);
            TRY_ASSIGN(format::DecodedRecord decoded, format::decode_record(encoding));
            if (decoded.encoded_bytes != bytes)
                return fail(Code::corrupt, "record {} has {} bytes, not {}", i,
                            decoded.encoded_bytes, bytes);
            format::Record& record = out.emplace_back(std::move(decoded.record));
            if (!payload.take(record.payload_bytes(), &record.payload))
                return fail(Code::corrupt, "the payload of record {} is cut off", i);
            if (Result<void> fits = format::validate(record); !fits)
                return fail(Code::corrupt, "{}", fits.error().message());
        }
        if (!payload.is_at_end()) return fail(Code::corrupt, "payload that belongs to no record");
        return {};
    }
    Result<void> check_end() const {
        if (reader_.ok() && is_sound_ && reader_.remaining() == 0) return {};
        return fail(Code::corrupt, "a journal's message that is cut off, or makes no sense");
    }

  private:
    template <typename Enum>
    Enum get_enum(Enum last) {
        auto read = reader_.read<uint8_t>();
        bool is_known = read <= static_cast<uint8_t>(last);
        is_sound_ &= is_known;
        return is_known ? static_cast<Enum>(read) : Enum{};
    }

    ByteReader reader_;
    bool is_sound_ = true;
};

enum class Word : uint8_t { fence_answer = 1, member_answer = 2, refusal = 3 };

template <typename Call, typename... Fields>
Result<Call> decode_fields(const peer::Message& message, Call call, Fields Call::*... fields) {
    Reader reader(message.body);
    TRY(reader.check_version());
    (reader.get(call.*fields), ...);
    TRY(reader.check_end());
    if (!message.payload.empty()) return fail(Code::corrupt, "payload that belongs to nothing");
    return call;
}

}  // namespace

// ---- calls ----

peer::Message encode(const FenceCall& call) {
    Writer writer;
    writer.put(call.volume);
    writer.put(call.lineage);
    writer.put(call.message);
    return writer.take();
}

template <>
Result<FenceCall> decode_call<FenceCall>(peer::Message message) {
    return decode_fields(message, FenceCall{}, &FenceCall::volume, &FenceCall::lineage,
                         &FenceCall::message);
}

peer::Message encode(const RenewCall& call) {
    Writer writer;
    writer.put(call.volume);
    writer.put(call.message);
    return writer.take();
}

template <>
Result<RenewCall> decode_call<RenewCall>(peer::Message message) {
    return decode_fields(message, RenewCall{}, &RenewCall::volume, &RenewCall::message);
}

peer::Message encode(const ReleaseCall& call) {
    Writer writer;
    writer.put(call.volume);
    writer.put(call.message);
    return writer.take();
}

template <>
Result<ReleaseCall> decode_call<ReleaseCall>(peer::Message message) {
    return decode_fields(message, ReleaseCall{}, &ReleaseCall::volume, &ReleaseCall::message);
}

peer::Message encode(const ReadLogCall& call) {
    Writer writer;
    writer.put(call.volume);
    writer.put(call.claim);
    writer.put(call.incarnation);
    writer.put(call.after);
    writer.put(call.bytes);
    return writer.take();
}

template <>
Result<ReadLogCall> decode_call<ReadLogCall>(peer::Message message) {
    return decode_fields(message, ReadLogCall{}, &ReadLogCall::volume, &ReadLogCall::claim,
                         &ReadLogCall::incarnation, &ReadLogCall::after, &ReadLogCall::bytes);
}

peer::Message encode(const OpenCall& call) {
    Writer writer;
    std::vector<Buffer> payload;
    writer.put(call.volume);
    writer.put(call.lineage);
    writer.put(call.message);
    writer.put(call.part);
    writer.put(call.part_count);
    writer.put(call.base.drained_lsn);
    writer.put(call.base.meta_lsn);
    writer.put_records(call.records, &payload);
    return writer.take(std::move(payload));
}

template <>
Result<OpenCall> decode_call<OpenCall>(peer::Message message) {
    OpenCall call;
    Reader reader(message.body);
    TRY(reader.check_version());
    reader.get(call.volume);
    reader.get(call.lineage);
    reader.get(call.message);
    reader.get(call.part);
    reader.get(call.part_count);
    reader.get(call.base.drained_lsn);
    reader.get(call.base.meta_lsn);
    if (call.part >= call.part_count || call.part_count > kPartsMax)
        return fail(Code::corrupt, "part {} of {} of an open", call.part, call.part_count);
    TRY(reader.get_records(call.records, std::move(message.payload)));
    TRY(reader.check_end());
    return call;
}

peer::Message encode(const AppendCall& call) {
    Writer writer;
    std::vector<Buffer> payload;
    writer.put(call.volume);
    writer.put(call.message);
    writer.put_records({call.record}, &payload);
    return writer.take(std::move(payload));
}

template <>
Result<AppendCall> decode_call<AppendCall>(peer::Message message) {
    AppendCall call;
    Reader reader(message.body);
    TRY(reader.check_version());
    reader.get(call.volume);
    reader.get(call.message);
    std::vector<format::Record> records;
    TRY(reader.get_records(records, std::move(message.payload)));
    TRY(reader.check_end());
    if (records.size() != 1) return fail(Code::corrupt, "an append of {} records", records.size());
    call.record = std::move(records.front());
    return call;
}

// ---- answers ----

peer::Message encode(const Message& word) {
    Writer writer;
    if (const auto* fenced = std::get_if<FenceAnswer>(&word)) {
        writer.put(Word::fence_answer);
        writer.put(*fenced);
    } else if (const auto* answer = std::get_if<MemberAnswer>(&word)) {
        writer.put(Word::member_answer);
        writer.put(*answer);
    } else {
        writer.put(Word::refusal);
        writer.put(std::get<Refusal>(word));
    }
    return writer.take();
}

namespace {

template <typename Answer>
Result<Message> finish_word(Reader& reader) {
    Answer answer;
    reader.get(answer);
    TRY(reader.check_end());
    return answer;
}

}  // namespace

Result<Message> decode_word(const peer::Message& message) {
    Reader reader(message.body);
    TRY(reader.check_version());
    if (!message.payload.empty()) return fail(Code::corrupt, "payload that belongs to nothing");
    uint8_t word = 0;
    reader.get(word);
    switch (static_cast<Word>(word)) {
        case Word::fence_answer:
            return finish_word<FenceAnswer>(reader);
        case Word::member_answer:
            return finish_word<MemberAnswer>(reader);
        case Word::refusal:
            return finish_word<Refusal>(reader);
    }
    return fail(Code::corrupt, "a member's answer of kind {}", word);
}

peer::Message encode(const LogRecords& records) {
    Writer writer;
    std::vector<Buffer> payload;
    writer.put(records.is_last);
    writer.put(records.base.drained_lsn);
    writer.put(records.base.meta_lsn);
    writer.put_records(records.records, &payload);
    return writer.take(std::move(payload));
}

Result<LogRecords> decode_records(peer::Message message) {
    LogRecords out;
    Reader reader(message.body);
    TRY(reader.check_version());
    reader.get(out.is_last);
    reader.get(out.base.drained_lsn);
    reader.get(out.base.meta_lsn);
    TRY(reader.get_records(out.records, std::move(message.payload)));
    TRY(reader.check_end());
    return out;
}

}  // namespace peplos::replica
