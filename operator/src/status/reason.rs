//! The words of the status: types of conditions, and the operator's own reasons. Both lists are closed.
//!
//! A runtime's reasons (why an end is not connected) come with its `/status` and are in the same page, `docs/troubleshooting.md`.

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $word:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$word_doc])* $word,)*
        }

        impl $name {
            /// Every word.
            pub const ALL: &'static [$name] = &[$($name::$word,)*];

            /// The word.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($name::$word => stringify!($word),)*
                }
            }
        }
    };
}

words! {
    /// Aspect of a Connector, in the order in which they are listed: the summary first.
    ConditionType {
        /// This generation runs as asked, and data can move.
        Ready,
        /// The operator still works on this generation; absent when not.
        Reconciling,
        /// Nothing will change until somebody changes something; absent when not.
        Stalled,
        /// The configuration can be carried out.
        ConfigValid,
        /// Every wanted pod runs and is ready.
        WorkloadAvailable,
        /// The end at Wallaroo.
        WallarooConnected,
        /// The external end.
        ExternalConnected,
    }
}

words! {
    /// Why a condition is as it is.
    Reason {
        /// Data can move.
        Running,
        /// A sink listens; no worker has dialled yet.
        Listening,
        /// Paused, as asked.
        Paused,
        /// Stopped, as asked.
        Stopped,
        /// No replica is asked for.
        ScaledToZero,
        /// A finite source has delivered everything.
        Complete,
        /// A change of the spec is being taken up.
        NewGeneration,
        /// Pods are being made or replaced.
        RollingOut,
        /// Pods drain and end.
        Stopping,
        /// Old pods end before new ones start.
        Recreating,
        /// Something of an earlier Connector of this name is still being deleted.
        WaitingForDeletion,
        /// An object of somebody else has a name that is needed.
        NameConflict,
        /// The spec can never work.
        ConfigInvalid,
        /// The spec asks for something that the operator does not allow.
        NotAllowed,
        /// The spec names a system that this operator does not know.
        UnsupportedSystem,
        /// The API server refuses an object.
        ApplyRefused,
        /// A rollout makes no progress.
        ProgressDeadlineExceeded,
        /// An image cannot be pulled.
        ImagePullFailed,
        /// A quota of the namespace is used up.
        QuotaExceeded,
        /// The API server does not let a pod be made.
        PodRefused,
        /// A volume cannot be mounted.
        MountFailed,
        /// The kubelet cannot make or start the container.
        ContainerNotStarted,
        /// A container ends again and again.
        CrashLooping,
        /// No node takes a pod.
        Unschedulable,
        /// A pod's node is gone.
        NodeLost,
        /// Pods are not ready, and nothing says why yet.
        PodsNotReady,
        /// A runtime's status cannot be fetched.
        StatusUnreachable,
        /// The end at Wallaroo is away.
        WallarooUnreachable,
        /// The external end is away.
        ExternalUnreachable,
        /// A Secret or a key of it is missing.
        SecretMissing,
        /// The configuration can be carried out.
        Valid,
        /// Every wanted pod is ready.
        Available,
        /// An end is connected.
        Connected,
        /// Nobody has dialled yet.
        Waiting,
        /// An end is being connected.
        Connecting,
    }
}
