{{/* The pods. The helm test shares their parts, so that it has the same settings and files as the worker. */}}

{{- define "sluicegate.hasSecret" -}}
{{- if or .Values.secret.existingSecret .Values.secret.data }}true{{ end -}}
{{- end -}}

{{/* Returns the arguments that name the settings' files, as a JSON list. Later files win. */}}
{{- define "sluicegate.configArgs" -}}
{{- $args := list -}}
{{- if .Values.existingConfigMap }}{{ $args = append $args "--config=/etc/sluicegate/base.yaml" }}{{ end -}}
{{- if .Values.config }}{{ $args = append $args "--config=/etc/sluicegate/sluicegate.yaml" }}{{ end -}}
{{- toJson $args -}}
{{- end -}}

{{- define "sluicegate.args" -}}
{{- $args := .Values.args -}}
{{- if not $args -}}
{{- $args = concat (list "run") (include "sluicegate.configArgs" . | fromJsonArray) -}}
{{- with .workload.run }}{{ $args = append $args (printf "--destinations=%s" (join "," .)) }}{{ end -}}
{{- end -}}
{{- concat $args .Values.extraArgs | toYaml -}}
{{- end -}}

{{- define "sluicegate.env" -}}
{{- range $name, $value := .Values.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sluicegate.volumes" -}}
- name: config
  projected:
    sources:
      {{- if .Values.existingConfigMap }}
      - configMap:
          name: {{ .Values.existingConfigMap }}
          items: [{key: {{ .Values.existingConfigMapKey }}, path: base.yaml}]
      {{- end }}
      {{- if .Values.config }}
      - configMap:
          name: {{ include "sluicegate.fullname" . }}
      {{- end }}
{{- if include "sluicegate.hasSecret" . }}
- name: secret
  secret:
    secretName: {{ default (include "sluicegate.fullname" .) .Values.secret.existingSecret }}
    defaultMode: {{ int .Values.secret.defaultMode }}
    {{- with .Values.secret.items }}
    items:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sluicegate.volumeMounts" -}}
- name: config
  mountPath: /etc/sluicegate
  readOnly: true
{{- if include "sluicegate.hasSecret" . }}
- name: secret
  mountPath: {{ .Values.secret.mountPath }}
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The settings that the worker's pods share with the test's pod. */}}
{{- define "sluicegate.podBase" -}}
serviceAccountName: {{ include "sluicegate.serviceAccountName" . }}
automountServiceAccountToken: {{ .Values.serviceAccount.automount }}
{{- /* Otherwise Kubernetes sets variables such as SLUICEGATE_PORT for every Service of the namespace. */}}
enableServiceLinks: false
{{- with concat .Values.global.imagePullSecrets .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- range $key := list "dnsConfig" "hostAliases" "nodeSelector" "tolerations" }}
{{- with get $.Values $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Returns the spread constraints with the selector of the workload's own pods. */}}
{{- define "sluicegate.spread" -}}
{{- $selector := dict "matchLabels" (include "sluicegate.workloadSelector" . | fromYaml) -}}
{{- $out := list -}}
{{- range deepCopy (default list .Values.topologySpreadConstraints) -}}
{{- if not (hasKey . "labelSelector") }}{{ $_ := set . "labelSelector" $selector }}{{ end -}}
{{- if and (not (hasKey . "matchLabelKeys")) (eq $.Values.workload.kind "Deployment") -}}
{{- $_ := set . "matchLabelKeys" (list "pod-template-hash") -}}
{{- end -}}
{{- $out = append $out . -}}
{{- end -}}
{{- with $out }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{- define "sluicegate.podTemplate" -}}
metadata:
  labels:
    {{- /* The labels leave out the chart's version, which would restart the pods with every release of the chart. */}}
    {{- $labels := include "sluicegate.workloadSelector" . | fromYaml }}
    {{- merge $labels (deepCopy .Values.podLabels) (deepCopy .Values.commonLabels) | toYaml | nindent 4 }}
  {{- $annotations := dict "kubectl.kubernetes.io/default-container" "sluicegate" }}
  {{- if and .Values.config .Values.rollout.onConfigChange }}
  {{- $_ := set $annotations "checksum/config" (include "sluicegate.configOf" . | sha256sum) }}
  {{- end }}
  {{- if and .Values.secret.data .Values.rollout.onSecretChange }}
  {{- $_ := set $annotations "checksum/secret" (toYaml .Values.secret.data | sha256sum) }}
  {{- end }}
  annotations:
    {{- merge (deepCopy .Values.podAnnotations) $annotations (deepCopy .Values.commonAnnotations) | toYaml | nindent 4 }}
spec:
  {{- include "sluicegate.podBase" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ int .Values.terminationGracePeriodSeconds }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "sluicegate.spread" . }}
  topologySpreadConstraints:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with .Values.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: sluicegate
      image: {{ include "sluicegate.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      {{- with .Values.command }}
      command:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      args:
        {{- include "sluicegate.args" . | nindent 8 }}
      {{- $static := include "sluicegate.isStatic" . }}
      {{- $env := include "sluicegate.env" . | trim }}
      {{- if or $static $env }}
      env:
        {{- with $env }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- if $static }}
        - name: SLUICEGATE__KAFKA__PROPERTIES__GROUP_INSTANCE_ID
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        {{- end }}
      {{- end }}
      {{- with .Values.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: http
          containerPort: {{ include "sluicegate.httpPort" . }}
          protocol: TCP
      {{- range $probe := list "startupProbe" "livenessProbe" "readinessProbe" }}
      {{- with get $.Values $probe }}
      {{ $probe }}:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- end }}
      {{- with .Values.lifecycle }}
      lifecycle:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- /* A refused setting ends the process, and `kubectl describe` then names the setting. */}}
      terminationMessagePolicy: FallbackToLogsOnError
      resources:
        {{- include "sluicegate.resources" . | nindent 8 }}
      {{- with .Values.securityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        {{- include "sluicegate.volumeMounts" . | nindent 8 }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "sluicegate.volumes" . | nindent 4 }}
{{- end -}}
