#include "peer/link.h"

#include <algorithm>

#include "base/crc32c.h"

namespace peplos::peer {
namespace {

constexpr size_t kChunkBytes = 16 * kKiB;
constexpr size_t kBatchPartsMax = 256;
constexpr uint64_t kBatchBytesMax = 1 * kMiB;

Hello hello_of(const Self& self, NodeId target) {
    return {self.cluster, self.node, target, self.boot, self.versions, self.role};
}

}  // namespace

// ---- Batch ----

void Batch::add(FrameHeader header, Message message) {
    CHECK(message.body.size() <= limits::kPeerBodyBytesMax);
    uint32_t crc = 0;
    uint64_t payload_bytes = 0;
    bool is_checked = message.payload_check == PayloadCheck::by_link;
    for (const Buffer& buffer : message.payload) {
        payload_bytes += buffer.size();
        if (is_checked) crc = crc32c(buffer.bytes(), crc);
    }
    CHECK(payload_bytes <= limits::kPeerPayloadBytesMax);
    header.payload_bytes = static_cast<uint32_t>(payload_bytes);
    header.payload_is_checked = is_checked && payload_bytes != 0;
    header.payload_crc = header.payload_is_checked ? crc : 0;
    put(header, message.body);
    if (message.payload.empty()) return;
    end_slice();
    for (Buffer& buffer : message.payload)
        parts_.push_back(std::move(buffer));
    bytes_ += payload_bytes;
}

void Batch::add(FrameHeader header, Bytes body) {
    put(header, body);
}

void Batch::put(const FrameHeader& header, Bytes body) {
    FrameHeader whole = header;
    whole.body_bytes = static_cast<uint32_t>(body.size());
    whole.body_crc = crc32c(body);
    size_t need = kFrameHeaderBytes + body.size();
    if (chunk_.size() - used_ < need) {
        end_slice();
        chunk_ = Buffer::allocate(std::max(need, kChunkBytes));
        slice_begin_ = used_ = 0;
    }
    FrameHeaderBytes encoded = encode_frame_header(whole);
    ByteWriter writer(chunk_.bytes().subspan(used_, need));
    writer.put(encoded);
    writer.put(body);
    used_ += need;
    bytes_ += need;
}

void Batch::end_slice() {
    if (used_ == slice_begin_) return;
    parts_.push_back(chunk_.slice(slice_begin_, used_ - slice_begin_));
    slice_begin_ = used_;
}

bool Batch::is_full() const {
    return parts_.size() >= kBatchPartsMax || bytes_ >= kBatchBytesMax;
}

std::vector<Buffer> Batch::take() {
    end_slice();
    bytes_ = 0;
    return std::exchange(parts_, {});
}

// ---- Link ----

Link::Link(runtime::Env& env, std::unique_ptr<runtime::Connection> connection)
    : env_(env),
      connection_(std::move(connection)),
      last_received_(env.clock.now()),
      last_sent_(last_received_) {}

void Link::count_into(Counters* counters) {
    counters->bytes_sent += own_counters_.bytes_sent;
    counters->bytes_received += own_counters_.bytes_received;
    counters_ = counters;
}

void Link::agree_on(uint16_t version) {
    version_ = version;
    parser_.agree_on(version);
}

void Link::close(Error why) {
    if (why_.has_value()) return;
    why_ = std::move(why);
    connection_->close();
    work_.wake_all();
}

Result<std::optional<Frame>> Link::take() {
    if (why_.has_value()) return fail(Error(*why_));
    auto frame = parser_.next();
    if (!frame) close(frame.error());
    return frame;
}

runtime::Task<Result<void>> Link::read_more() {
    if (why_.has_value()) co_return fail(Error(*why_));
    Buffer target = parser_.target();
    auto count = co_await connection_->read_some(std::move(target));
    if (why_.has_value()) co_return fail(Error(*why_));
    if (!count) {
        close(count.error());
        co_return fail(std::move(count).error());
    }
    parser_.put(*count);
    last_received_ = env_.clock.now();
    counters_->bytes_received += *count;
    co_return Result<void>{};
}

runtime::Task<Result<Frame>> Link::receive() {
    while (true) {
        CO_TRY_ASSIGN(std::optional<Frame> frame, take());
        if (frame.has_value()) co_return std::move(*frame);
        CO_TRY(co_await read_more());
    }
}

runtime::Task<Result<void>> Link::send_now(FrameHeader header, Bytes body) {
    Batch batch;
    batch.add(header, body);
    counters_->bytes_sent += batch.bytes();
    std::vector<Buffer> parts = batch.take();
    auto written = co_await connection_->write(std::move(parts));
    if (!written) close(written.error());
    co_return written;
}

runtime::Task<Result<Agreement>> Link::introduce(Self self, NodeId wanted) {
    HelloBytes hello = encode_hello(hello_of(self, wanted));
    CO_TRY(co_await send_now({.kind = FrameKind::hello}, hello));
    CO_TRY_ASSIGN(Frame frame, co_await receive());
    if (frame.header.kind == FrameKind::refuse) {
        Error error = error_of(frame.header.code, frame.message.body);
        close(error);
        co_return fail(std::move(error));
    }
    if (frame.header.kind != FrameKind::welcome) {
        co_return fail(Code::corrupt, "{} answers a hello with kind {}", peer(),
                       static_cast<int>(frame.header.kind));
    }
    CO_TRY_ASSIGN(Hello host, decode_hello(frame.message.body));
    auto agreed = agree(self, host, connection_->identity(), wanted);
    if (agreed) {
        agree_on(agreed->version);
    } else {
        close(agreed.error());
    }
    co_return agreed;
}

runtime::Task<Result<Agreement>> Link::receive_guest(Self self) {
    CO_TRY_ASSIGN(Frame frame, co_await receive());
    if (frame.header.kind != FrameKind::hello) {
        co_return fail(Code::corrupt, "{} begins with kind {}", peer(),
                       static_cast<int>(frame.header.kind));
    }
    CO_TRY_ASSIGN(Hello guest, decode_hello(frame.message.body));
    auto agreed = agree(self, guest, connection_->identity(), NodeId{});
    if (!agreed) {
        std::string text(error_text(agreed.error().message()));
        FrameHeader refuse{.kind = FrameKind::refuse, .code = wire_of(agreed.error().code())};
        // The other end learns it if it can; what matters is our own answer.
        auto told = co_await send_now(refuse, bytes_of_text(text));
        if (told) close(agreed.error());
        co_return agreed;
    }
    HelloBytes welcome = encode_hello(hello_of(self, guest.node));
    CO_TRY(co_await send_now({.kind = FrameKind::welcome}, welcome));
    agree_on(agreed->version);
    co_return agreed;
}

runtime::Task<void> Link::write_loop(Source& source) {
    while (!is_closed()) {
        Batch batch;
        source.fill(batch);
        if (batch.empty()) {
            co_await work_.wait();
            continue;
        }
        counters_->bytes_sent += batch.bytes();
        ++counters_->writes;
        std::vector<Buffer> parts = batch.take();
        auto written = co_await connection_->write(std::move(parts));
        if (!written) close(written.error());
        last_sent_ = env_.clock.now();
        source.written();
    }
}

}  // namespace peplos::peer
