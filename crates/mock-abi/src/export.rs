//! How functions get out of the library.

/// Defines C functions and exports them under their own names; those of `nccl` also under their
/// profiling names, with a `p` in front.
///
/// ```text
/// export! {
///     nccl, on_panic = ncclResult_t::INTERNAL_ERROR;
///
///     /// Tells the version code.
///     fn ncclGetVersion(version: *mut c_int) -> ncclResult_t { … }
/// }
/// export! {
///     plain, on_panic = CUDA_ERROR_UNKNOWN;
///     …
/// }
/// ```
///
/// The Rust function is what the two exported ones call, so that a tool which takes the place of
/// `ncclX` and calls `pncclX` does not get back to itself. A body runs under
/// [`guarded`](crate::runtime::guarded), and may assume what the C interface promises: pointers are
/// null or valid.
macro_rules! export {
    (
        nccl, on_panic = $on_panic:expr;
        $(
            $(#[$meta:meta])*
            fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $return:ty)? $body:block
        )*
    ) => {
        $(
            export!(@function $on_panic; $(#[$meta])*
                fn $name($($arg: $type),*) $(-> $return)? $body);
            export!(@symbol stringify!($name); $name($($arg: $type),*) $(-> $return)?);
            export!(@symbol concat!("p", stringify!($name));
                $name($($arg: $type),*) $(-> $return)?);
        )*
    };
    (
        plain, on_panic = $on_panic:expr;
        $(
            $(#[$meta:meta])*
            fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $return:ty)? $body:block
        )*
    ) => {
        $(
            export!(@function $on_panic; $(#[$meta])*
                fn $name($($arg: $type),*) $(-> $return)? $body);
            export!(@symbol stringify!($name); $name($($arg: $type),*) $(-> $return)?);
        )*
    };
    (
        @function $on_panic:expr; $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $type:ty),*) $(-> $return:ty)? $body:block
    ) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// That of the C function: pointers are null or valid, and handles were made here.
        pub unsafe extern "C" fn $name($($arg: $type),*) $(-> $return)? {
            $crate::runtime::guarded(stringify!($name), || $on_panic, || $body)
        }
    };
    (
        @symbol $symbol:expr;
        $name:ident($($arg:ident: $type:ty),*) $(-> $return:ty)?
    ) => {
        const _: () = {
            #[unsafe(export_name = $symbol)]
            unsafe extern "C" fn exported($($arg: $type),*) $(-> $return)? {
                // SAFETY: the caller keeps to the contract of the function of this name.
                unsafe { $name($($arg),*) }
            }
        };
    };
}
