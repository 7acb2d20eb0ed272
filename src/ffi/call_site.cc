#include "ffi/call_site.h"

#include <cstring>
#include <map>
#include <memory>

namespace jax_bfc {

constinit Mutex ffi_mutex{LockRank::kTargets};

namespace {

// By API; an entry never moves, since XLA keeps pointers into it.
std::map<const XLA_FFI_Api*, XLA_FFI_TypeId>& Types() {
  static auto* const types = new std::map<const XLA_FFI_Api*, XLA_FFI_TypeId>;
  return *types;
}

void DeleteCallSite(void* call_site) {
  delete static_cast<CallSite*>(call_site);
}

const XLA_FFI_TypeInfo kTypeInfo = {XLA_FFI_TypeInfo_STRUCT_SIZE, nullptr,
                                    DeleteCallSite};

}  // namespace

XLA_FFI_Error* MakeError(const XLA_FFI_Api* api, XLA_FFI_Error_Code code,
                         const char* message) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE,
                                    nullptr, message, code};
  return api->XLA_FFI_Error_Create(&args);
}

bool DestroyError(const XLA_FFI_Api* api, XLA_FFI_Error* error) {
  if (error == nullptr) return false;
  XLA_FFI_Error_Destroy_Args args = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE,
                                     nullptr, error};
  api->XLA_FFI_Error_Destroy(&args);
  return true;
}

XLA_FFI_Error* RegisterCallSiteType(const XLA_FFI_Api* api,
                                    XLA_FFI_TypeId* type_id) {
  const Guard lock(ffi_mutex);
  XLA_FFI_TypeId& registered = Types()[api];
  if (registered.type_id == 0) {
    constexpr char kName[] = "jax_bfc.CallSite";
    XLA_FFI_Type_Register_Args args = {XLA_FFI_Type_Register_Args_STRUCT_SIZE,
                                       nullptr,
                                       {kName, std::strlen(kName)},
                                       &registered,
                                       &kTypeInfo};
    if (XLA_FFI_Error* error = api->XLA_FFI_Type_Register(&args)) return error;
  }
  *type_id = registered;
  return nullptr;
}

CallSite* FindCallSite(const XLA_FFI_Api* api,
                       XLA_FFI_ExecutionContext* context) {
  XLA_FFI_TypeId type_id;
  if (DestroyError(api, RegisterCallSiteType(api, &type_id))) return nullptr;
  XLA_FFI_State_Get_Args args = {
      XLA_FFI_State_Get_Args_STRUCT_SIZE, nullptr,  context,
      XLA_FFI_ExecutionStage_INSTANTIATE, &type_id, nullptr};
  if (DestroyError(api, api->XLA_FFI_State_Get(&args))) return nullptr;
  return static_cast<CallSite*>(args.state);
}

XLA_FFI_Error* SetCallSite(XLA_FFI_CallFrame* frame, KernelId kernel) {
  XLA_FFI_TypeId type_id;
  if (XLA_FFI_Error* error = RegisterCallSiteType(frame->api, &type_id)) {
    return error;
  }
  auto call_site = std::make_unique<CallSite>(kernel);
  XLA_FFI_State_Set_Args args = {XLA_FFI_State_Set_Args_STRUCT_SIZE,
                                 nullptr,
                                 frame->ctx,
                                 frame->stage,
                                 &type_id,
                                 call_site.get()};
  if (XLA_FFI_Error* error = frame->api->XLA_FFI_State_Set(&args)) return error;
  call_site.release();  // XLA's now
  return nullptr;
}

}  // namespace jax_bfc
