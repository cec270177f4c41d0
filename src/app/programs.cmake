# The two small programs that peplosd starts; installed beside it.
add_executable(peplos-holder attach/holder_main.cc)
target_link_libraries(peplos-holder PRIVATE peplos_attach)
peplos_pch(peplos-holder)
add_executable(peplos-mounter attach/mounter_main.cc)
target_link_libraries(peplos-mounter PRIVATE peplos_attach)
peplos_pch(peplos-mounter)
# For tests/system/attach_test.sh only; never installed.
add_executable(attach-ram-server attach/ram_server_main.cc)
target_link_libraries(attach-ram-server PRIVATE peplos_attach)
peplos_pch(attach-ram-server)
