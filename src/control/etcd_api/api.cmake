# The messages of etcd's API that are used, generated from the .proto files beside this one. They go
# over gRPC's generic stub, so no service code is generated.
set(etcd_api ${CMAKE_CURRENT_SOURCE_DIR}/control/etcd_api)
set(etcd_api_out ${CMAKE_BINARY_DIR}/generated/control/etcd_api)
file(MAKE_DIRECTORY ${etcd_api_out})
foreach(name kv rpc)
  list(APPEND etcd_api_sources ${etcd_api_out}/${name}.pb.cc)
  list(APPEND etcd_api_headers ${etcd_api_out}/${name}.pb.h)
endforeach()
add_custom_command(OUTPUT ${etcd_api_sources} ${etcd_api_headers}
  COMMAND ${PROTOC} --proto_path=${etcd_api} --cpp_out=${etcd_api_out} kv.proto rpc.proto
  DEPENDS ${etcd_api}/kv.proto ${etcd_api}/rpc.proto VERBATIM)
add_library(peplos_etcd_api STATIC ${etcd_api_sources} ${etcd_api_headers})
target_compile_options(peplos_etcd_api PRIVATE -w)
# As a system folder: generated headers are held to their own rules. The second entry is for what
# they include of each other.
target_include_directories(peplos_etcd_api SYSTEM PUBLIC ${CMAKE_BINARY_DIR}/generated
  ${etcd_api_out})
target_link_libraries(peplos_etcd_api PUBLIC PkgConfig::protobuf)
